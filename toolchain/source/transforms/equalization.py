"""Columns of a matrix made equally large by factors folded into the layer before it; the model computes the same.

A code has the same number of bits in every column of a matrix, and codes serve best what is distributed alike. Rows
have scales of their own, columns do not; but what feeds a column can be scaled instead (cross-layer equalization,
arXiv 1906.04721), where that costs nothing at run time:

- a norm's weight and bias, before the query, key and value layers and before the feed-forward part;
- the rows of the value layer, before the attention's output layer; heads that share values share factors;
- the rows of the up layer, before the down layer, where nothing but a product (a gated unit) or ReLU is between them.

Those rows have scales of their own, so they lose nothing. Factors are those of the column's energy, every row counted
relative to its own. Measured in docs/quantizer.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from export.graph.spec import BlockNames, ModelSpec
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.folding import FoldedSource

Factors = Callable[[], torch.Tensor]
_ROWS = 1024  # in float64 at a time
_MOST = 4.0  # a factor at most, and at least its inverse: the rows it divides have coded scales


def column_factors(energy: torch.Tensor) -> torch.Tensor:
    """What to multiply columns by so that their energies [K] are alike; dead columns stay. float32 [K]."""
    known = energy > 0
    if not bool(known.any()):
        return torch.ones(len(energy))
    factors = torch.where(known, energy / energy[known].median(), 1.0) ** -0.5
    return factors.clamp(1 / _MOST, _MOST).float()


def column_energy(weight: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of a weight [N, K] of the squares, relative to the row's mean square. float64 [K]."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in weight.split(_ROWS):
        squares = rows.double().square()
        total += (squares / squares.mean(dim=1, keepdim=True).clamp_min(1e-300)).sum(dim=0)
    return total


class EqualizedSource(FoldedSource):
    """A checkpoint whose linear layers come out with equalized columns, whatever its architecture admits of it."""

    def __init__(self, inner: SourceModel, spec: ModelSpec) -> None:
        super().__init__(inner)
        self._spec = spec
        self._known: dict[str, torch.Tensor] = {}  # factors by the first layer that takes them
        for number in range(spec.blocks):
            prefix, names = spec.block_name(number), spec.names(number)
            self._plan_norms(number, prefix, names)
            if names.attends and not names.value_norm and (names.value or names.fused_qkv):
                self._plan_values(prefix, names)
            elif names.convolution is not None:
                self._plan_convolution(prefix, names)
            self._plan_feed_forward(prefix, names)

    def _factors(self, layers: list[str]) -> torch.Tensor:
        """Factors of the columns that several layers read alike."""
        if layers[0] not in self._known:
            energies = [column_energy(self._rows_first(self.inner.tensor(f"{name}.weight"))) for name in layers]
            self._known[layers[0]] = column_factors(torch.stack(energies).sum(dim=0))
        return self._known[layers[0]]

    def _rows_first(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T if self._spec.linear_is_transposed else weight

    def _scale_columns(self, layer: str, factors: Factors) -> None:
        self.change(f"{layer}.weight", lambda w: self._rows_first(self._rows_first(w) * factors()))

    def _divide_rows(self, layer: str, rows: np.ndarray, factors: Factors) -> None:
        """rows: which of the layer's outputs the factors [len(rows)] belong to."""

        def weight(w: torch.Tensor) -> torch.Tensor:
            turned = self._rows_first(w).clone()
            turned[rows] /= factors()[:, None]
            return self._rows_first(turned)

        def bias(b: torch.Tensor) -> torch.Tensor:
            changed = b.clone()
            changed[rows] /= factors()
            return changed

        self.change(f"{layer}.weight", weight)
        self.change(f"{layer}.bias", bias)

    def _plan_norms(self, number: int, prefix: str, block: BlockNames) -> None:
        spec, attention = self._spec, block.first()
        alone = number in spec.layers_without_attention_norm or block.laurel is not None  # which adds the normed states
        before = None if alone else block.attention_norm
        feed_forward = block.feed_forward_readers()
        groups = [(before, attention), (block.mlp_norm, feed_forward)]
        if block.mlp_norm is None and spec.parallel_residual:  # both parts read the attention's norm
            groups = [(before, attention + feed_forward)]
        for norm, readers in groups:
            if norm is not None:
                floats = block.first_floats() if norm == before else ()
                self._fold_norm(prefix + norm, [prefix + name for name in readers], [prefix + name for name in floats])

    def _fold_norm(self, norm: str, readers: list[str], floats: list[str]) -> None:
        """floats: layers that read the norm, too, and have no codes."""
        factors, offset = partial(self._factors, readers), self._spec.norm_offset
        for layer in (*readers, *floats):
            self._scale_columns(layer, factors)
        self.change(f"{norm}.weight", lambda w: (w + offset) / factors() - offset)
        self.change(f"{norm}.bias", lambda b: b / factors())

    def _plan_values(self, prefix: str, block: BlockNames) -> None:
        spec = self._spec
        assert block.attention_output is not None
        output = prefix + block.attention_output
        shared = spec.heads // spec.kv_heads

        def of_values() -> torch.Tensor:
            """Factors [kv_heads * head_dim]."""
            if output not in self._known:
                energy = column_energy(self._rows_first(self.inner.tensor(f"{output}.weight")))
                energy = energy.reshape(spec.kv_heads, shared, spec.head_dim).sum(dim=1)
                self._known[output] = column_factors(energy.reshape(-1))
            return self._known[output]

        def of_columns() -> torch.Tensor:
            heads = of_values().reshape(spec.kv_heads, 1, spec.head_dim)
            return heads.expand(-1, shared, -1).reshape(-1)

        layer = block.value or block.fused_qkv
        assert layer is not None
        self._scale_columns(output, of_columns)
        self._divide_rows(prefix + layer, value_rows(spec, block), of_values)

    def _plan_convolution(self, prefix: str, block: BlockNames) -> None:
        """A convolution of each channel is linear: its values, the third part of the first layer, and its bias."""
        assert block.convolution is not None and block.attention_output is not None
        output, size = prefix + block.attention_output, self._spec.hidden_size
        factors = partial(self._factors, [output])
        self._scale_columns(output, factors)
        self._divide_rows(prefix + block.convolution.input, 2 * size + np.arange(size), factors)
        self.change(f"{prefix}{block.convolution.kernel}.bias", lambda b: b / factors())

    def _plan_feed_forward(self, prefix: str, block: BlockNames) -> None:
        spec = self._spec
        gated = block.gate is not None or block.fused_gate_up is not None
        if block.down is None or (not gated and spec.activation != "relu"):
            return
        factors = partial(self._factors, [prefix + block.down])
        self._scale_columns(prefix + block.down, factors)
        width = block.feed_forward or spec.feed_forward
        rows = np.arange(width)
        if block.fused_gate_up:
            self._divide_rows(prefix + block.fused_gate_up, rows + width, factors)
        else:
            assert block.up is not None
            self._divide_rows(prefix + block.up, rows, factors)


def value_rows(spec: ModelSpec, block: BlockNames) -> np.ndarray:
    """Which outputs of the layer that makes the values are values, int64 [kv_heads * head_dim], in their order."""
    count = spec.kv_heads * spec.head_dim
    if block.value is not None:
        return np.arange(count)
    if not spec.fused_qkv_by_head:
        return (spec.heads + spec.kv_heads) * spec.head_dim + np.arange(count)
    heads = np.arange(spec.kv_heads)[:, None] * 3 * spec.head_dim + 2 * spec.head_dim
    return (heads + np.arange(spec.head_dim)).ravel()
