"""A randomized Hadamard rotation folded into neighbouring weights, so that the model computes the same.

Two places admit one without any work at run time (QuaRot, arXiv 2404.00456; QuIP, arXiv 2307.13304):

- `values`: every head's values, undone by the columns of the attention's output layer;
- `residual`: the residual stream. RMSNorm does not notice a rotation once its weight is folded into the layers behind
  it; embedding and head take part, so a head that shares the embedding's table cannot.

A rotation spreads outliers among weights and makes inputs alike. Whether that helps depends on the Hessian: error
feedback gains from inputs that are not alike, and loses it (docs/quantizer.md has the figures).
"""

from __future__ import annotations

import numpy as np
import torch

from export.contract.errors import InputError
from export.graph.spec import HeadSizes, ModelSpec
from toolchain.settings.preparation import RESIDUAL, VALUES
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.folding import FoldedSource


def hadamard_rotation(size: int, seed: int) -> torch.Tensor:
    """An orthogonal matrix float32 [size, size]: random signs, then Hadamard matrices of the largest power of two."""
    step = size & -size
    block = np.ones((1, 1))
    while len(block) < step:
        block = np.block([[block, block], [block, -block]])
    signs = np.random.default_rng((seed, size)).choice([-1.0, 1.0], size)
    turned = np.kron(np.eye(size // step), block / np.sqrt(step)) * signs
    return torch.from_numpy(turned.astype(np.float32))


class RotatedSource(FoldedSource):
    """A checkpoint whose tensors come out rotated; everything else is the source's."""

    def __init__(self, inner: SourceModel, spec: ModelSpec, rotation: str, seed: int) -> None:
        """rotation: `values`, `residual` or both, comma separated; what else is named is not done here.

        Raises InputError when the architecture does not admit the rotation.
        """
        super().__init__(inner)
        if RESIDUAL in rotation.split(","):
            self._plan_residual(spec, hadamard_rotation(spec.hidden_size, seed))
        if VALUES in rotation.split(","):
            self._plan_values(spec, seed)

    def _plan_residual(self, spec: ModelSpec, turn: torch.Tensor) -> None:
        others = [
            (block.attention_post_norm, block.mlp_post_norm, block.attention_sum_norm, block.mlp_sum_norm)
            for block in spec.kinds()
        ]
        plain = spec.norm == "rms" and not spec.norm_offset and not any(any(names) for names in others)
        plain = plain and all(block.attention_norm is not None for block in spec.kinds())
        if not plain or spec.position_embedding or spec.embedding_projection or spec.final_norm is None:
            raise InputError(f"--rotation residual needs RMSNorm in front of every layer; {spec.model_type} differs")
        if spec.tied_head or spec.head is None:
            raise InputError("--rotation residual needs a head of its own; this model's shares the embedding")
        self.change(f"{spec.embedding}.weight", lambda w: w @ turn.T)
        self._read(spec.head, spec.final_norm, turn)
        for number in range(spec.blocks):
            prefix, block = spec.block_name(number), spec.names(number)
            attention_norm = prefix + str(block.attention_norm)
            mlp_norm = attention_norm if block.mlp_norm is None else prefix + block.mlp_norm
            for layer in block.first():
                self._read(prefix + layer, attention_norm, turn)
            for reader in block.feed_forward_readers():
                self._read(prefix + reader, mlp_norm, turn)
            space = None if block.state_space is None else block.state_space.output
            for name in (block.attention_output, space, block.down):
                for part in ("weight", "bias"):
                    self.change(f"{prefix}{name}.{part}", lambda w: turn @ w)

    def _read(self, layer: str, norm: str, turn: torch.Tensor) -> None:
        """The layer takes over the weight of the norm before it and reads the rotated stream."""
        norm_weight = f"{norm}.weight"

        def change(w: torch.Tensor) -> torch.Tensor:
            return (w * self.inner.tensor(norm_weight)) @ turn.T

        self.change(f"{layer}.weight", change)
        self.change(norm_weight, torch.ones_like)

    def _plan_values(self, spec: ModelSpec, seed: int) -> None:
        if spec.query_gate:
            raise InputError(f"--rotation values is not available where attention is gated, as in {spec.model_type}")
        own = [n for n in range(spec.layers) if spec.cache_layer(n) == n and spec.names_of_layer(n).attends]
        if any(spec.names_of_layer(layer).value is None for layer in own) or spec.linear_is_transposed:
            raise InputError(
                f"--rotation values needs a value layer of its own; {spec.model_type} has it in one with others"
            )
        for number in range(spec.blocks):
            prefix, block, heads = spec.block_name(number), spec.names(number), spec.heads_of_block(number)
            if not block.attends:
                continue
            turn = hadamard_rotation(heads.head_dim, seed)

            def rows(w: torch.Tensor, heads: HeadSizes = heads, turn: torch.Tensor = turn) -> torch.Tensor:
                return torch.matmul(turn, w.reshape(heads.kv_heads, heads.head_dim, -1)).reshape(w.shape)

            def columns(w: torch.Tensor, heads: HeadSizes = heads, turn: torch.Tensor = turn) -> torch.Tensor:
                return torch.matmul(w.reshape(len(w), heads.heads, heads.head_dim), turn.T).reshape(w.shape)

            if block.value is not None:  # else those of an earlier layer, which come rotated alike
                for part in ("weight", "bias"):
                    self.change(f"{prefix}{block.value}.{part}", rows)
            self.change(f"{prefix}{block.attention_output}.weight", columns)
