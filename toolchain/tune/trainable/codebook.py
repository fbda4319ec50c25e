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

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.packing import pack
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT
from toolchain.tune.trainable.base import TrainableMatrix
from toolchain.tune.trainable.looked_up import looked_up, narrow
from toolchain.tune.trainable.scale import through


class TrainableLinear(TrainableMatrix):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: StoredMatrix) -> None:
        super().__init__(module, stored)
        self.latent = nn.Parameter(torch.from_numpy(stored.codes_alone()))
        self.codebook = nn.Parameter(torch.from_numpy(stored["codebook"].astype(np.float32)))
        self.lowrank: nn.ParameterList | None = None
        if stored.low_rank is not None:
            factors = [nn.Parameter(torch.from_numpy(p.astype(np.float32))) for p in stored.low_rank]
            self.lowrank = nn.ParameterList(factors)

    def _levels(self) -> torch.Tensor:
        """Codebooks [chunks, G, levels] as they would be stored, ascending."""
        rounded = self.codebook.detach().round().clamp(-LEVEL_LIMIT, LEVEL_LIMIT)
        return through(self.codebook, rounded).sort(dim=-1)[0]

    def _group(self, index: int, levels: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and dequantized weights [N, width] of one column group."""
        width, layout = self.layout.columns_per_group, self.layout
        latent = self.latent[:, index * width : (index + 1) * width]
        scale = scales[:, index : index + 1]
        chunks, missing = levels.shape[0], -layout.N % layout.rows_per_codebook
        # round-to-nearest has negative scales, zero rows have zero
        divisor = torch.where(scale == 0.0, 1.0, scale).detach()
        target = functional.pad(latent.detach() / divisor, (0, 0, 0, missing)).reshape(chunks, -1)
        middles = ((levels[:, index, 1:] + levels[:, index, :-1]) / 2).detach().contiguous()
        codes = torch.searchsorted(middles, target.contiguous()).to(narrow(levels.shape[2]))
        codes = codes.reshape(-1, latent.shape[1])[: layout.N]
        return codes, looked_up(levels[:, index], scale, latent, codes, layout.rows_per_codebook)

    def weight_matrix(self) -> torch.Tensor:
        levels, scales = self._levels(), self.scale.per_row()
        weight = torch.cat([self._group(g, levels, scales)[1] for g in range(self.layout.groups)], dim=1)
        if self.lowrank is not None:
            a, b = (through(p, p.detach().half().float()) for p in self.lowrank)
            weight = weight + b @ a
        return weight if self.apart is None else weight + self.apart

    @torch.no_grad()
    def to_stored(self, losses: dict[str, float]) -> StoredMatrix:
        layout, levels, scales = self.layout, self._levels(), self.scale.per_row()
        codes = [self._group(g, levels, scales)[0] for g in range(layout.groups)]
        packed = pack(torch.cat(codes, dim=1).numpy().astype(np.uint8), layout.bits)
        stored_scale, coded = self.scale.to_stored()
        parts = {"codes": packed, "codebook": levels.numpy().round().astype(np.int8), "scale": stored_scale}
        own = {} if coded is None else {"scale": coded}
        low_rank = None
        if self.lowrank is not None:
            a, b = (p.numpy().astype(np.float16) for p in self.lowrank)
            low_rank = (a, b)
        return replace(self.stored, parts=parts, coded=own, low_rank=low_rank, losses=losses)
