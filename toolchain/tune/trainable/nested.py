"""Nested codes whose codes, codebooks of all widths and scales can be trained: steps take turns at the widths.

The forward pass of a step has the very weights that would be stored at its width. Each width has latent weights, which
get the gradients of its steps; the one code of a weight is that whose levels come closest to all of them. Distances are
weighed by 4**width, as the squares of the levels' distances fall. Straight-through as in codebook.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.nested import NestedLayout, split
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT
from toolchain.tune.trainable.base import TrainableMatrix
from toolchain.tune.trainable.looked_up import looked_up, narrow
from toolchain.tune.trainable.scale import through


class TrainableNested(TrainableMatrix):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: StoredMatrix) -> None:
        super().__init__(module, stored)
        layout = stored.layout
        assert isinstance(layout, NestedLayout)
        arrays = [stored[part] for part in layout.parts()]
        own = []
        for width in layout.widths:
            plain = layout.at_width(width)
            own.append(plain.dequantized(*(layout.part_at(width, part, *arrays) for part in plain.parts())))
        self.latent = nn.Parameter(torch.from_numpy(np.stack(own)))  # [widths, N, K]
        self.codebook = nn.Parameter(torch.from_numpy(stored["codebook"].astype(np.float32)))
        self.width = layout.bits  # at which weight_matrix() is

    def turn(self, step: int) -> None:
        widths = self.layout.widths
        self.width = widths[-1 - step % len(widths)]

    def _levels(self) -> torch.Tensor:
        """Codebooks [chunks, entries] as they would be stored."""
        return through(self.codebook, self.codebook.detach().round().clamp(-LEVEL_LIMIT, LEVEL_LIMIT))

    def _by_row(self, entries: torch.Tensor) -> torch.Tensor:
        """What rows have, from what chunks have: [chunks, ...] to [N, ...]."""
        return entries.repeat_interleave(self.layout.rows_per_codebook, 0)[: self.layout.N]

    @torch.no_grad()
    def _codes(self, levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes of the full width, int64 [N, K]: the least weighted squares, the lowest code where several have it."""
        layout = self.layout
        divisor = torch.where(scale == 0.0, 1.0, scale)
        targets = [latent / divisor * 2.0**width for latent, width in zip(self.latent, layout.widths)]
        least = torch.full_like(targets[0], torch.inf)
        best = torch.zeros_like(targets[0], dtype=torch.int64)

        def visit(depth: int, code: int, above: torch.Tensor | float) -> None:
            width = layout.lowest + depth
            level = self._by_row(levels[:, layout.entries_of(width).start + code])[:, None] * 2.0**width
            cost = (targets[depth] - level).square_().add_(above)
            if width < layout.bits:
                visit(depth + 1, 2 * code, cost)
                visit(depth + 1, 2 * code + 1, cost)
                return
            better = cost < least
            least.copy_(torch.where(better, cost, least))
            best.masked_fill_(better, code)

        for code in range(1 << layout.lowest):
            visit(0, code, 0.0)
        return best

    def weight_matrix(self) -> torch.Tensor:
        layout, levels, scale = self.layout, self._levels(), self.scale.per_row()
        codes = self.codes_held(lambda: self._codes(levels, scale).to(narrow(1 << layout.bits)))
        own = codes >> (layout.bits - self.width)
        levels, latent = levels[:, layout.entries_of(self.width)], self.latent[self.width - layout.lowest]
        return looked_up(levels, scale, latent, own, layout.rows_per_codebook)

    @torch.no_grad()
    def to_stored(self, losses: dict[str, float]) -> StoredMatrix:
        layout, levels = self.layout, self._levels()
        code = self._codes(levels, self.scale.per_row()).numpy().astype(np.uint8)
        codes, planes = split(code, layout.bits, layout.lowest)
        stored_scale, coded = self.scale.to_stored()
        books = levels.numpy().round().astype(np.int8)
        parts = {"codes": codes, "planes": planes, "codebook": books, "scale": stored_scale}
        return replace(self.stored, parts=parts, coded={} if coded is None else {"scale": coded}, losses=losses)
