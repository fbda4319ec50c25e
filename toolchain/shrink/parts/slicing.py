"""The tensors of a cut model: rows and columns of the source's, under the names of the layers that are left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from export.graph.spec import ModelSpec
from toolchain.shrink.parts.cut import Cut, LayerCut, Sizes


class Tensors(Protocol):
    """What a model's tensors are read from."""

    def parameters(self) -> list[str]: ...

    def tensor(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Slice:
    """Which rows and columns of a linear layer are kept, int64; None: all of them."""

    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def of_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """weight [N, K] without the rest."""
        if self.rows is not None:
            weight = weight[torch.from_numpy(self.rows)]
        return weight if self.columns is None else weight[:, torch.from_numpy(self.columns)]

    def of_bias(self, bias: torch.Tensor) -> torch.Tensor:
        return bias if self.rows is None else bias[torch.from_numpy(self.rows)]


def slices(spec: ModelSpec, part: LayerCut) -> dict[str, Slice]:
    """By the linear layers of a block (names within it): what of them is kept. spec: of the source."""
    names, own = spec.block, Sizes.of(spec)
    queries, keys = _columns(part.heads, spec.head_dim), _columns(part.kv_heads, spec.head_dim)
    channels = np.asarray(part.channels, np.int64)
    found: dict[str | None, Slice] = {
        names.query: Slice(rows=queries),
        names.key: Slice(rows=keys),
        names.value: Slice(rows=keys),
        names.attention_output: Slice(columns=queries),
        names.gate: Slice(rows=channels),
        names.up: Slice(rows=channels),
        names.down: Slice(columns=channels),
    }
    if names.fused_qkv is not None:
        all_queries, all_keys = own.heads * spec.head_dim, own.kv_heads * spec.head_dim
        rows = [queries, all_queries + keys, all_queries + all_keys + keys]
        found[names.fused_qkv] = Slice(rows=np.concatenate(rows))
    if names.fused_gate_up is not None:
        found[names.fused_gate_up] = Slice(rows=np.concatenate([channels, own.feed_forward + channels]))
    return {name: kept for name, kept in found.items() if name is not None}


def _columns(heads: tuple[int, ...], head_dim: int) -> np.ndarray:
    """Columns of some heads, int64 [heads * head_dim]."""
    return (np.asarray(heads, np.int64)[:, None] * head_dim + np.arange(head_dim)).ravel()


def cut_names(source: Tensors, spec: ModelSpec, cut: Cut) -> Iterator[tuple[str, str, Slice]]:
    """Of every tensor that is left: its name in the cut model, in the source, and what of it is kept."""
    blocks = {spec.block_name(old): place for place, old in enumerate(cut.layers)}
    all_blocks = [spec.block_name(number) for number in range(spec.blocks)]
    by_layer = [slices(spec, part) for part in cut.parts]
    for name in source.parameters():
        prefix = next((block for block in all_blocks if name.startswith(block)), None)
        if prefix is None:
            yield name, name, Slice()
        elif prefix in blocks:
            place, inner = blocks[prefix], name.removeprefix(prefix)
            kept = by_layer[place].get(inner.rpartition(".")[0], Slice())
            yield spec.block_name(place) + inner, name, kept


def cut_tensors(
    source: Tensors, spec: ModelSpec, cut: Cut, instead: Mapping[str, np.ndarray] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the cut model, float32, by name, one at a time.

    instead: weights [N, kept] in the place of some layers' own, by the source's name of the layer.
    """
    for name, old, kept in cut_names(source, spec, cut):
        module, _, kind = old.rpartition(".")
        if kind == "weight" and instead and module in instead:
            yield name, torch.from_numpy(instead[module])
            continue
        value = source.tensor(old)
        if value.ndim == 2:
            value = kept.of_weight(value)
        elif kind == "bias":
            value = kept.of_bias(value)
        yield name, value.contiguous()
