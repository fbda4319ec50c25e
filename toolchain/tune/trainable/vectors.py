"""A linear layer of vector codes that can be trained, and turned back into stored form exactly.

As trainable.py: the forward pass uses the stored weights, gradients pass every rounding unchanged. With one book codes
are the vectors nearest to a latent weight and so follow it; with several, which add up, codes stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.vectors import SUM_LIMIT
from export.contract.packing import pack
from toolchain.tune.trainable.base import TrainableMatrix
from toolchain.tune.trainable.scale import through


class TrainableVectors(TrainableMatrix):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: StoredMatrix) -> None:
        super().__init__(module, stored)
        self.codebook = nn.Parameter(torch.from_numpy(stored["codebook"].astype(np.float32)))
        largest = self.codebook.detach().abs().amax(dim=(2, 3), keepdim=True)
        self._limit: torch.Tensor
        self._codes: torch.Tensor
        self.register_buffer("_limit", torch.full_like(largest, SUM_LIMIT) if self.layout.books == 1 else largest)
        self.latent: nn.Parameter | None = None
        if self.layout.books == 1:
            self.latent = nn.Parameter(torch.from_numpy(stored.codes_alone()))
        else:
            self.register_buffer("_codes", torch.from_numpy(self.layout.unpack_codes(stored["codes"]).astype(np.int64)))

    def _entries(self) -> torch.Tensor:
        """Codebooks [chunks, M, E, d] as they would be stored; no book grows, so sums over books stay within 8 bits."""
        rounded = torch.minimum(torch.maximum(self.codebook.detach().round(), -self._limit), self._limit)
        return through(self.codebook, rounded)

    def _nearest(self, entries: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes [N, 1, J] of the vectors nearest to the latent weight."""
        layout = self.layout
        divisor = torch.where(scale == 0.0, 1.0, scale)
        missing = layout.vectors * layout.dimension - layout.K
        assert self.latent is not None
        target = functional.pad(self.latent.detach() / divisor.detach(), (0, missing))
        codes = []
        for chunk, rows in enumerate(target.split(layout.rows_per_codebook)):
            book = entries[chunk, 0].detach()
            vectors = rows.reshape(-1, layout.dimension)
            if missing:  # what lies behind the last column does not count
                last = layout.dimension - missing
                free = vectors.view(len(rows), -1, layout.dimension)
                codes.append(self._with_short_end(free, book, last))
                continue
            codes.append(_closest(vectors, book).reshape(len(rows), 1, -1))
        return torch.cat(codes)

    @staticmethod
    def _with_short_end(rows: torch.Tensor, book: torch.Tensor, last: int) -> torch.Tensor:
        whole = _closest(rows[:, :-1].reshape(-1, rows.shape[2]), book).reshape(len(rows), -1)
        end = _closest(rows[:, -1, :last].contiguous(), book[:, :last])
        return torch.cat([whole, end[:, None]], dim=1)[:, None]

    def weight_matrix(self) -> torch.Tensor:
        layout, entries, scale = self.layout, self._entries(), self.scale.per_row()
        codes = self._nearest(entries, scale) if self.latent is not None else self._codes
        chunk = torch.arange(layout.N, device=scale.device) // layout.rows_per_codebook
        levels = sum(entries[chunk[:, None], m, codes[:, m]] for m in range(layout.books))
        assert isinstance(levels, torch.Tensor)
        weight = levels.reshape(layout.N, -1)[:, : layout.K] * scale
        if self.latent is not None:
            weight = weight + (self.latent - self.latent.detach())
        return weight if self.apart is None else weight + self.apart

    @torch.no_grad()
    def to_stored(self, losses: dict[str, float]) -> StoredMatrix:
        entries, layout = self._entries(), self.layout
        scale, coded = self.scale.to_stored()
        packed = self.stored["codes"]
        if self.latent is not None:
            codes = self._nearest(entries, self.scale.per_row()).numpy().astype(np.uint8)
            packed = pack(codes.reshape(-1, layout.vectors), layout.bits).reshape(layout.codes_shape)
        book = entries.numpy().round().astype(np.int8)
        parts, own = {"codes": packed, "codebook": book, "scale": scale}, {} if coded is None else {"scale": coded}
        return replace(self.stored, parts=parts, coded=own, losses=losses)


def _closest(vectors: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Index of the entry of book [E, d] nearest to each of vectors [n, d]."""
    own = book.square().sum(dim=1)
    step = max(1, (1 << 24) // len(book))
    return torch.cat([(own - 2 * part @ book.T).argmin(dim=1) for part in vectors.split(step)])
