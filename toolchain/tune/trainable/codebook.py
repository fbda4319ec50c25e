"""A quantized linear layer whose codes, codebooks and scales can be trained, and turned back into stored form exactly.

The forward pass uses the very weights that would be stored: codes are the nearest levels of a latent weight, codebook
entries are rounded to int8, coded scales to their int8 levels. Gradients pass every rounding unchanged
(straight-through, arXiv 1308.3432); the latent weight gets the gradient of the weight it stands for, so codes are
re-assigned as it moves, while codebooks and scales get theirs through the look-up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from export.contract.packing import pack
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT
from toolchain.quantize.stored.codebook import QuantizedMatrix
from toolchain.quantize.stored.outliers import sparse_weight
from toolchain.tune.trainable.scale import TrainableScale, through


class TrainableLinear(nn.Module):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: QuantizedMatrix) -> None:
        super().__init__()
        layout = stored.layout
        self.stored, self.layout = stored, layout
        bias = module.bias
        self.current: torch.Tensor | None = None  # stands for weight_matrix() during a step (microbatch.py)
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, torch.Tensor) else None
        self.transposed = isinstance(module, Conv1D)
        codebook_part = replace(stored, lowrank_a=None, lowrank_b=None, outliers=None)
        self.latent = nn.Parameter(torch.from_numpy(codebook_part.dequantized()))
        self.codebook = nn.Parameter(torch.from_numpy(stored.codebook.astype(np.float32)))
        self.scale = TrainableScale(stored.scale, stored.coded_scale, layout.N, layout.rows_per_scale)
        self.apart = sparse_weight(stored.outliers, layout.N, layout.K)
        self.lowrank: nn.ParameterList | None = None
        if stored.lowrank_a is not None and stored.lowrank_b is not None:
            parts = (stored.lowrank_a, stored.lowrank_b)
            self.lowrank = nn.ParameterList([nn.Parameter(torch.from_numpy(p.astype(np.float32))) for p in parts])

    def _levels(self) -> torch.Tensor:
        """Codebooks [chunks, G, levels] as they would be stored, ascending."""
        rounded = self.codebook.detach().round().clamp(-LEVEL_LIMIT, LEVEL_LIMIT)
        return through(self.codebook, rounded).sort(dim=-1)[0]

    def _group(self, index: int, levels: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [chunks, R * width] and dequantized weights [N, width] of one column group."""
        width, layout = self.layout.columns_per_group, self.layout
        latent = self.latent[:, index * width : (index + 1) * width]
        scale = scales[:, index : index + 1]
        chunks, missing = levels.shape[0], -layout.N % layout.rows_per_codebook
        divisor = torch.where(scale == 0.0, 1.0, scale)  # round-to-nearest has negative scales, zero rows have zero
        target = functional.pad((latent / divisor).detach(), (0, 0, 0, missing)).reshape(chunks, -1)
        middles = ((levels[:, index, 1:] + levels[:, index, :-1]) / 2).detach().contiguous()
        codes = torch.searchsorted(middles, target.contiguous())
        looked_up = torch.gather(levels[:, index], 1, codes).reshape(-1, latent.shape[1])[: layout.N]
        return codes, looked_up * scale + (latent - latent.detach())

    def weight_matrix(self) -> torch.Tensor:
        """The stored weight [N, K] with gradients to every trainable part."""
        levels, scales = self._levels(), self.scale.per_row()
        weight = torch.cat([self._group(g, levels, scales)[1] for g in range(self.layout.groups)], dim=1)
        if self.lowrank is not None:
            a, b = (through(p, p.detach().half().float()) for p in self.lowrank)
            weight = weight + b @ a
        return weight if self.apart is None else weight + self.apart

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight_matrix() if self.current is None else self.current, self.bias)

    @torch.no_grad()
    def to_stored(self, losses: dict[str, float]) -> QuantizedMatrix:
        """The trained layer in stored form; its dequantized weights are weight_matrix() to float32 rounding."""
        layout, levels, scales = self.layout, self._levels(), self.scale.per_row()
        codes = [self._group(g, levels, scales)[0].reshape(-1, w) for g, w in enumerate(self._widths())]
        packed = pack(torch.cat(codes, dim=1)[: layout.N].numpy().astype(np.uint8), layout.bits)
        stored_scale, coded = self.scale.to_stored()
        low = [None, None] if self.lowrank is None else [p.numpy().astype(np.float16) for p in self.lowrank]
        return replace(
            self.stored,
            codes=packed,
            codebook=levels.numpy().round().astype(np.int8),
            scale=stored_scale,
            coded_scale=coded,
            lowrank_a=low[0],
            lowrank_b=low[1],
            losses=losses,
        )

    def _widths(self) -> list[int]:
        width, columns = self.layout.columns_per_group, self.layout.K
        return [min(width, columns - g * width) for g in range(self.layout.groups)]
