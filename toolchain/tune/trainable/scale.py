"""Scales of a stored matrix that can be trained: floats of their own, or levels that coded scales point at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.packing import unpack
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT


def through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded` with the gradient of `exact`: straight-through, arXiv 1308.3432."""
    return exact + (rounded - exact).detach()


class TrainableScale(nn.Module):
    """scale [ceil(N / rows_per_scale), G] as stored, with its codes where it is coded."""

    def __init__(self, scale: np.ndarray, coded: StoredMatrix | None, rows: int, rows_per_scale: int) -> None:
        super().__init__()
        self._dtype, self._coded, self._rows, self._per_scale = scale.dtype, coded, rows, rows_per_scale
        self._codes: torch.Tensor | None
        self.register_buffer("_codes", None)
        if coded is None:
            self.values = nn.Parameter(torch.from_numpy(scale.astype(np.float32)))
        else:
            codes = unpack(coded["codes"], coded.layout.bits, coded.layout.K)
            self._codes = torch.from_numpy(codes.T.astype(np.int64))
            self.values = nn.Parameter(
                torch.from_numpy(coded["codebook"][0, 0] * coded["scale"][0, 0].astype(np.float32))
            )

    def per_row(self) -> torch.Tensor:
        """Scales [N, G] as they would be stored."""
        if self._codes is None:
            stored = self.values.detach()
            rounded = stored.half().float() if self._dtype == np.float16 else stored
            return through(self.values, rounded).repeat_interleave(self._per_scale, 0)[: self._rows]
        levels, unit = self._levels()
        return through(self.values, levels * unit)[self._codes]

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Integer scale levels (1..127) and their unit, both float32, without gradient."""
        assert self._coded is not None
        values = self.values.detach()
        unit = values.max() / LEVEL_LIMIT
        if self._coded["scale"].dtype == np.float16:
            unit = unit.half().float()
        return (values / unit).round().clamp(1, LEVEL_LIMIT), unit

    @torch.no_grad()
    def to_stored(self) -> tuple[np.ndarray, StoredMatrix | None]:
        """(scale, coded scale) as they are stored."""
        if self._coded is None:
            return self.values.numpy().astype(self._dtype), None
        levels, unit = self._levels()
        fresh = {
            "codebook": levels.numpy().astype(np.int8)[None, None],
            "scale": np.full((1, 1), float(unit), dtype=self._coded["scale"].dtype),
        }
        coded = replace(self._coded, parts={**self._coded.parts, **fresh})
        return np.ascontiguousarray(coded.dequantized().T), coded
