"""Codes that nest, solved at all widths together: rows in slabs, float32, the moves of scalar_batched.py.

A code of `bits` bits stands for one level at each width: its leading w bits pick a level of the width's own codebook.
So a weight has an error at each width, e_w = w - scale * level_w, and each width its loss e_w^T H e_w under the same
Hessian. Losses differ by orders of magnitude; what is lowered is the sum of their logarithms, so that no width is
served at the relative expense of another. A pass takes it linear: every width's loss is divided by its value.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import torch

from export.contract.formats.nested import NestedLayout
from toolchain.quantize.solvers.scalar import _half
from toolchain.quantize.solvers.scalar_batched import _BLOCK, _round_all, _Slab

_CYCLES = 3  # of coordinate descent in a pass, at most
_ROUNDS = 8  # of two-means
_LEAST = 1e-30  # a loss that is none


@nb.njit(cache=True, nogil=True)
def _split(w, scale, curvature, shared, codes, book, above):  # type: ignore[no-untyped-def]
    """Split every level of `above` [chunks, levels] in two, book [chunks, 2 * levels]; codes gain a bit.

    Two-means of the weights that have the level, weighted by curvature; a level that no weight has stays as it is.
    """
    for chunk in range(book.shape[0]):
        first, last = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        for parent in range(above.shape[1]):
            book[chunk, 2 * parent] = book[chunk, 2 * parent + 1] = above[chunk, parent]
        for _ in range(_ROUNDS):
            sums, counts = np.zeros(book.shape[1]), np.zeros(book.shape[1])
            for r in range(first, last):
                s = scale[r, 0]
                if s <= 0.0:
                    continue
                for j in range(w.shape[1]):
                    k = 2 * np.int64(codes[r, j])
                    if w[r, j] > s * (book[chunk, k] + book[chunk, k + 1]) / 2:
                        k += 1
                    counts[k] += curvature[j] * s * s
                    sums[k] += curvature[j] * s * w[r, j]
            for entry in range(book.shape[1]):
                if counts[entry] > 0.0:
                    book[chunk, entry] = sums[entry] / counts[entry]
        for r in range(first, last):
            for j in range(w.shape[1]):
                k = 2 * np.int64(codes[r, j])
                if w[r, j] > scale[r, 0] * (book[chunk, k] + book[chunk, k + 1]) / 2:
                    k += 1
                codes[r, j] = k


@nb.njit(cache=True, nogil=True)
def _sweep_block(work, factor, order, first, shared, books, scale, lowest, bits, share, codes, spread):  # type: ignore[no-untyped-def]
    """Round a block of columns in order at all widths; later columns of the block absorb each width's error.

    work [widths, R, K]: the weights in that order with what they have absorbed, by width; spread [widths, R, columns].
    """
    count, width = bits - lowest + 1, spread.shape[2]
    total = np.empty((2, 1 << bits))
    for r in range(codes.shape[0]):
        book, s, own = books[r // shared], scale[r, 0], share[r // shared]
        for p in range(width):
            for i in range(count):
                start, now, above = (1 << (lowest + i)) - (1 << lowest), total[i & 1], total[(i + 1) & 1]
                value = np.float64(work[i, r, first + p])
                for c in range(1 << (lowest + i)):
                    left = value - s * book[start + c]
                    now[c] = own[i] * left * left + (0.0 if i == 0 else above[c >> 1])
            costs = total[(count - 1) & 1]
            best = 0
            for c in range(1 << bits):
                if costs[c] < costs[best]:
                    best = c
            codes[r, order[first + p]] = best
            for i in range(count):
                level = book[(1 << (lowest + i)) - (1 << lowest) + (best >> (count - 1 - i))]
                amount = np.float32((work[i, r, first + p] - s * level) / factor[p, p])
                spread[i, r, p] = amount
                for j in range(p, width):
                    work[i, r, first + j] -= amount * factor[p, j]


@nb.njit(cache=True, nogil=True)
def _descend_block(codes, books, scale, shared, lowest, bits, share, gradient, hessian, first, step):  # type: ignore[no-untyped-def]
    """Coordinate descent over a block's columns: the code whose levels at all widths lower the sum most.

    books [chunks, entries]; share [chunks, widths]: what a width's loss is multiplied with; gradient [widths, R, K];
    step [widths, R, columns]: the change of each weight. Returns the number of changes.
    """
    count, width = bits - lowest + 1, step.shape[2]
    total = np.empty((2, 1 << bits))
    changes = 0
    for r in range(codes.shape[0]):
        book, s, own = books[r // shared], scale[r, 0], share[r // shared]
        local = gradient[:, r, first : first + width].copy()
        for p in range(width):
            for i in range(count):
                step[i, r, p] = 0.0
            if s <= 0.0:
                continue
            curvature, old = np.float64(hessian[p, first + p]), np.int64(codes[r, first + p])
            for i in range(count):
                start, size = (1 << (lowest + i)) - (1 << lowest), 1 << (lowest + i)
                now, above = total[i & 1], total[(i + 1) & 1]
                before = book[start + (old >> (count - 1 - i))]
                slope, bend = 2.0 * local[i, p] * s * own[i], curvature * s * s * own[i]
                for c in range(size):
                    d = book[start + c] - before
                    cost = d * (bend * d - slope)
                    now[c] = cost if i == 0 else cost + above[c >> 1]
            costs = total[(count - 1) & 1]
            best, least = old, 0.0
            for c in range(1 << bits):
                if costs[c] < least:
                    best, least = np.int64(c), costs[c]
            if best == old:
                continue
            codes[r, first + p] = best
            changes += 1
            for i in range(count):
                start, shift = (1 << (lowest + i)) - (1 << lowest), count - 1 - i
                move = np.float32(s * (book[start + (best >> shift)] - book[start + (old >> shift)]))
                step[i, r, p] = move
                for j in range(width):
                    local[i, j] -= move * hessian[p, first + j]
    return changes


class Nest:
    """Some rows with their Hessian, their codes and the codebooks of all widths."""

    def __init__(
        self, layout: NestedLayout, w: np.ndarray, hessian: torch.Tensor, codes: np.ndarray, books: np.ndarray,
        scale: np.ndarray,
    ) -> None:  # fmt: skip
        """codes uint8 [R, K] of the full width, books float64 [chunks, entries], scale float64 [R, 1]: in place."""
        self.layout, self.shared, self.hessian = layout, layout.rows_per_codebook, hessian
        self.codes, self.books, self.scale = codes, books, scale
        self.slabs = [_Slab(w, hessian, self.shared) for _ in layout.widths]
        self._gradient = torch.empty(len(self.slabs), *w.shape)
        for slab, gradient in zip(self.slabs, self._gradient):
            slab.gradient = gradient

    def _at(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes [R, K] and codebooks [chunks, 1, levels] of a width, contiguous."""
        book = np.ascontiguousarray(self.books[:, None, self.layout.entries_of(width)])
        return self.codes >> (self.layout.bits - width), book

    def evaluate(self) -> np.ndarray:
        """Errors and gradients of the state as it is; the loss of each codebook's rows, float64 [chunks, widths]."""
        losses = np.empty((len(self.books), len(self.slabs)))
        own = np.empty(len(self.books))
        for i, width in enumerate(self.layout.widths):
            codes, book = self._at(width)
            self.slabs[i].evaluate(codes, book, self.scale, own)
            losses[:, i] = own
        return losses

    def split(self, width: int, curvature: np.ndarray) -> None:
        """From width - 1 to width, by the weights alone: until the last split, codes are those of the width reached."""
        book = np.empty((len(self.books), 1 << width))
        above = np.ascontiguousarray(self.books[:, self.layout.entries_of(width - 1)])
        _split(self.slabs[0].w.numpy(), self.scale, curvature, self.shared, self.codes, book, above)
        self.books[:, self.layout.entries_of(width)] = book

    def round(self, half_scale: bool) -> None:
        """Levels to int8, and scales to fit them."""
        _round_all(self.books.copy(), self.shared, False, half_scale, self.books[:, None], self.scale)

    def sweep(self, factor: torch.Tensor, order: np.ndarray, share: np.ndarray) -> None:
        """All columns in order, every width's error absorbed by later columns through the inverse Hessian."""
        weights, count = self.slabs[0].w, len(self.slabs)
        work = weights[:, torch.from_numpy(order)].repeat(count, 1, 1)
        columns = weights.shape[1]
        for first in range(0, columns, _BLOCK):
            last = min(first + _BLOCK, columns)
            spread = torch.empty(count, len(weights), last - first)
            part = factor[first:last, first:last].contiguous()
            _sweep_block(
                work.numpy(), part.numpy(), order, first, self.shared, self.books, self.scale, self.layout.lowest,
                self.layout.bits, share, self.codes, spread.numpy(),
            )  # fmt: skip
            if last < columns:
                for left, own in zip(work, spread):
                    left[:, last:].addmm_(own, factor[first:last, last:], alpha=-1)

    def fit(self, share: np.ndarray, fixed_scale: bool, half_scale: bool) -> None:
        """Least squares: the codebook of each width, rounded to int8, then the scales that serve all widths."""
        real = np.empty_like(self.books)
        for slab, width in zip(self.slabs, self.layout.widths):
            real[:, self.layout.entries_of(width)] = slab.least_squares(*self._at(width), self.scale)
        _round_all(real, self.shared, fixed_scale, half_scale, self.books[:, None], self.scale)
        if fixed_scale:
            return
        self.evaluate()
        rows = np.arange(len(self.scale)) // self.shared
        slope, size = np.zeros(len(rows)), np.zeros(len(rows))
        for i, slab in enumerate(self.slabs):
            size += share[rows, i] * (slab.units * slab.turned_units).sum(dim=1).numpy()
            slope += share[rows, i] * (slab.units * slab.gradient).sum(dim=1).numpy()
        for r in range(len(rows)):
            exact = self.scale[r, 0] + slope[r] / size[r] if size[r] > 0.0 else 0.0
            if exact > 0.0:
                self.scale[r, 0] = _half(exact) if half_scale else exact

    def descend(self, share: np.ndarray) -> int:
        """One cycle of coordinate descent over all codes; gradients are kept up to date. Returns the changes."""
        columns, changes = self.codes.shape[1], 0
        for first in range(0, columns, _BLOCK):
            width = min(_BLOCK, columns - first)
            step = torch.empty(len(self.slabs), len(self.codes), width)
            rows = self.hessian[first : first + width]
            changes += _descend_block(
                self.codes, self.books, self.scale, self.shared, self.layout.lowest, self.layout.bits, share,
                self._gradient.numpy(), rows.numpy(), first, step.numpy(),
            )  # fmt: skip
            for gradient, own in zip(self._gradient, step):
                gradient.addmm_(own, rows, alpha=-1)
        return int(changes)

    def refine(
        self, passes: int, fixed_scale: bool, half_scale: bool,
        sweep: tuple[torch.Tensor, np.ndarray] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Rounds of a sweep, least squares and coordinate descent; losses [chunks, widths] of what is left.

        sweep: the Hessian's inverse factor and the order of the columns; None: without sweeps. The best state that was
        seen is left, by codebook, so no round makes anything worse.
        """
        losses = self.evaluate()
        found, best = losses.copy(), _figure(losses)
        state = (self.codes.copy(), self.books.copy(), self.scale.copy())
        for _ in range(passes):
            share = 1.0 / np.maximum(losses, _LEAST)
            if sweep is not None:
                self.sweep(*sweep, share)
                share = 1.0 / np.maximum(self.evaluate(), _LEAST)
            self.fit(share, fixed_scale, half_scale)
            share = 1.0 / np.maximum(self.evaluate(), _LEAST)
            for _cycle in range(_CYCLES):
                if self.descend(share) * 1000 < self.codes.size:
                    break
            losses = self.evaluate()
            better = _figure(losses) < best
            rows = np.repeat(better, self.shared)[: len(self.codes)]
            for kept, now, chosen in zip(state, (self.codes, self.books, self.scale), (rows, better, rows)):
                kept[chosen] = now[chosen]
            best[better], found[better] = _figure(losses)[better], losses[better]
        self.codes[:], self.books[:], self.scale[:] = state
        return found


def _figure(losses: np.ndarray) -> np.ndarray:
    """What is lowered, [chunks]: the sum of the logarithms of a codebook's losses."""
    return np.log(np.maximum(losses, _LEAST)).sum(axis=1)
