"""A linear layer of trellis codes that can be trained, and turned back into stored form exactly.

As trainable.py: the forward pass uses the stored weights, gradients pass every rounding unchanged. Codes are the best
paths (trellis_paths.py) for a latent weight, found anew whenever the weight is made unless they are held.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.halves import HALF, STATE_BITS, indices, split
from export.contract.formats.trellis import LEVEL_LIMIT
from export.contract.packing import pack
from toolchain.quantize.solvers.on_device.paths import best_paths
from toolchain.quantize.solvers.viterbi.column import trellis_kind
from toolchain.quantize.solvers.viterbi.levels import entries_of
from toolchain.quantize.solvers.viterbi.paths import nearest
from toolchain.tune.trainable.base import TrainableMatrix
from toolchain.tune.trainable.looked_up import looked_up, narrow
from toolchain.tune.trainable.scale import through


class TrainableTrellis(TrainableMatrix):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: StoredMatrix) -> None:
        super().__init__(module, stored)
        book = stored["codebook"]
        halves = split(book, self.layout.bits) if self.layout.state_bits == STATE_BITS else None
        self._sums = halves is not None and "codebook" not in stored.standard
        self._indices: torch.Tensor
        if self._sums:  # which they stay
            book = entries_of(book.astype(np.float64), self.layout.bits)
            self.register_buffer("_indices", torch.from_numpy(np.stack(indices(self.layout.bits))))
        entries = torch.from_numpy(book.astype(np.float32))
        self.codebook: torch.Tensor
        if "codebook" in stored.standard:
            self.register_buffer("codebook", entries)
        else:
            self.codebook = nn.Parameter(entries)
        self.latent = nn.Parameter(torch.from_numpy(stored.codes_alone()))
        self._row_weights: torch.Tensor | None
        self.register_buffer("_row_weights", None, persistent=False)  # goes where the module goes

    def weigh(self, rows: torch.Tensor) -> None:
        self._row_weights = rows

    def _levels(self) -> torch.Tensor:
        """Codebooks [chunks, states] as they would be stored."""
        rounded = self.codebook.detach().round()
        if not self._sums:
            return through(self.codebook, rounded.clamp(-LEVEL_LIMIT, LEVEL_LIMIT))
        first, second = rounded.split(HALF, dim=1)  # every entry of the one meets every one of the other
        least, most = -LEVEL_LIMIT - first.amin(1, keepdim=True), LEVEL_LIMIT - first.amax(1, keepdim=True)
        first, second = through(self.codebook, torch.cat([first, second.clamp(least, most)], dim=1)).split(HALF, dim=1)
        return first[:, self._indices[0]] + second[:, self._indices[1]]

    def _states(self, levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Best paths for the latent weight, whole numbers [N, K] of one byte where states have eight bits."""
        divisor = torch.where(scale == 0.0, 1.0, scale).detach()
        squares = divisor[:, 0].square()
        if self._row_weights is not None:
            squares = squares * self._row_weights
        if divisor.device.type != "cpu":
            return self._states_there(levels.detach(), self.latent.detach() / divisor, squares / squares.mean())
        target = (self.latent.detach() / divisor).T.contiguous().numpy()
        weight = (squares / squares.mean()).numpy()
        book, shared = levels.detach().numpy(), self.layout.rows_per_codebook
        parts, kind = [], trellis_kind(self.layout.bits, self.layout.state_bits)
        for chunk in range(len(book)):
            rows = slice(chunk * shared, min((chunk + 1) * shared, self.layout.N))
            states = np.empty((self.layout.K, rows.stop - rows.start), np.int32)
            nearest(kind, np.ascontiguousarray(target[:, rows]), weight[rows], book[chunk], states)
            parts.append(states)
        return torch.from_numpy(np.concatenate(parts, axis=1).T).to(narrow(1 << self.layout.state_bits))

    def _states_there(self, levels: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same on a device: targets [N, K], weights [N]."""
        shared = self.layout.rows_per_codebook
        parts = zip(levels, target.split(shared), weight.split(shared))
        found = [best_paths(self.layout.bits, t.T[None], w[None], book[None])[0].T for book, t, w in parts]
        return torch.cat(found).to(narrow(1 << self.layout.state_bits))

    def weight_matrix(self) -> torch.Tensor:
        levels, scale = self._levels(), self.scale.per_row()
        states = self.codes_held(lambda: self._states(levels, scale))
        weight = looked_up(levels, scale, self.latent, states, self.layout.rows_per_codebook)
        return weight if self.apart is None else weight + self.apart

    @torch.no_grad()
    def to_stored(self, losses: dict[str, float]) -> StoredMatrix:
        levels = self._levels()
        states = self._states(levels, self.scale.per_row()).numpy()
        codes = pack((states & ((1 << self.layout.bits) - 1)).astype(np.uint8), self.layout.bits)
        scale, coded = self.scale.to_stored()
        book = levels.numpy().round().astype(np.int8)
        parts, own = {"codes": codes, "codebook": book, "scale": scale}, {} if coded is None else {"scale": coded}
        return replace(self.stored, parts=parts, coded=own, losses=losses)
