"""The solver for long rows: the same objective and the same moves as solver.py, on many rows at once in float32.

solver.py reads the whole Hessian for every row, which is fine while it fits a cache and hopeless at 2,048 columns. Here
rows go in slabs, one a thread, and everything that touches the Hessian is a matrix product: a sweep or a cycle of
coordinate descent treats 128 columns exactly, row by row, and tells the other columns about it in one product; the
least-squares codebooks come from a few steps of conjugate gradients, whose every step is one product for all rows. Only
for matrices with one codebook along a row.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import torch

from toolchain.quantize.solvers.scalar import LEVEL_LIMIT, _cluster_only, _half, _nearest, _round_codebook
from toolchain.system.threads import ordered

_BLOCK = 128  # columns treated exactly before the others hear of it
_SLAB = 512  # rows that one thread takes at a time, about
_CONJUGATE_STEPS = 6  # of the least squares; a codebook has at most 2**bits unknowns and the system is well scaled


@nb.njit(cache=True, nogil=True)
def _cluster(w, order, curvature, shared, own_scales, half_scale, codes, book, scale):  # type: ignore[no-untyped-def]
    """Curvature-weighted k-means of every codebook, as solver.start begins."""
    group_of = np.zeros(w.shape[1], np.int64)
    for chunk in range(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        rows = w[a:b].astype(np.float64)
        base = np.ones(b - a)
        if own_scales:
            for r in range(b - a):
                base[r] = max(np.sqrt((rows[r] * rows[r] * curvature).sum() / curvature.sum()), 1e-30)
        levels = book.shape[2]
        _cluster_only(
            rows, order, curvature, group_of, 1, levels, base, half_scale, codes[a:b], book[chunk], scale[a:b]
        )


@nb.njit(cache=True, nogil=True)
def _sweep_block(work, factor, order, first, shared, codes, book, scale, spread):  # type: ignore[no-untyped-def]
    """Round `spread.shape[1]` columns in order; inside the block each later one absorbs the error at once."""
    width = spread.shape[1]
    for r in range(work.shape[0]):
        levels, s = book[r // shared, 0], scale[r, 0]
        for p in range(width):
            value = work[r, first + p]
            k = _nearest(levels, value / s if s > 0.0 else 0.0)
            codes[r, order[first + p]] = k
            amount = np.float32((value - s * levels[k]) / factor[p, p])
            spread[r, p] = amount
            for j in range(p, width):
                work[r, first + j] -= amount * factor[p, j]


@nb.njit(cache=True, nogil=True)
def _expand(codes, book, shared, out):  # type: ignore[no-untyped-def]
    """out[r, j] = the level of the code."""
    for r in range(codes.shape[0]):
        levels = book[r // shared, 0]
        for j in range(codes.shape[1]):
            out[r, j] = levels[codes[r, j]]


@nb.njit(cache=True, nogil=True)
def _gather(codes, values, scale, shared, out):  # type: ignore[no-untyped-def]
    """out[chunk, k] = sum over the chunk's rows of scale * (sum of `values` where the code is k)."""
    for chunk in range(out.shape[0]):
        out[chunk] = 0.0
        for r in range(chunk * shared, min((chunk + 1) * shared, codes.shape[0])):
            for j in range(codes.shape[1]):
                out[chunk, codes[r, j]] += scale[r, 0] * values[r, j]


@nb.njit(cache=True, nogil=True)
def _descend_block(codes, book, scale, shared, gradient, hessian, first, step):  # type: ignore[no-untyped-def]
    """Coordinate descent over the block's columns of every row; step: the change of each weight. Changes per row."""
    width = step.shape[1]
    changes = np.zeros(codes.shape[0], np.int64)
    for r in range(codes.shape[0]):
        levels, s = book[r // shared, 0], scale[r, 0]
        local = gradient[r, first : first + width].copy()
        for p in range(width):
            step[r, p] = 0.0
            if s <= 0.0:
                continue
            old = levels[codes[r, first + p]]
            target = local[p] / hessian[p, first + p]
            k = _nearest(levels, old + target / s)
            move = np.float32(s * (levels[k] - old))
            if move * (move - 2.0 * target) < 0.0:  # strictly better only, as in solver._descend
                codes[r, first + p] = k
                step[r, p] = move
                changes[r] += 1
                for j in range(width):
                    local[j] -= move * hessian[p, first + j]
    return changes.sum()


@nb.njit(cache=True, nogil=True)
def _round_all(real, shared, fixed_scale, half_scale, book, scale):  # type: ignore[no-untyped-def]
    """Real codebooks [chunks, levels] to int8 levels, with new scales unless they are fixed."""
    for chunk in range(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, scale.shape[0])
        if fixed_scale:
            book[chunk, 0] = np.minimum(np.maximum(np.round(real[chunk]), -LEVEL_LIMIT), LEVEL_LIMIT)
        else:
            _round_codebook(real[chunk], scale[a:b, 0].copy(), half_scale, book[chunk, 0], scale[a:b, 0])


@nb.njit(cache=True, nogil=True)
def _losses(error, gradient, shared, out):  # type: ignore[no-untyped-def]
    """out[chunk] = sum of error * gradient over the chunk's rows, in float64."""
    for chunk in range(out.size):
        total = 0.0
        for r in range(chunk * shared, min((chunk + 1) * shared, error.shape[0])):
            for j in range(error.shape[1]):
                total += np.float64(error[r, j]) * gradient[r, j]
        out[chunk] = total


class _Slab:
    """Some rows with their Hessian: everything that is a matrix product."""

    def __init__(self, w: np.ndarray, hessian: torch.Tensor, shared: int) -> None:
        self.w, self.shared = torch.from_numpy(np.ascontiguousarray(w, np.float32)), shared
        self.hessian = hessian
        self.turned_weights = self.w @ hessian  # H w of every row
        self.units, self.turned_units = torch.empty_like(self.w), torch.empty_like(self.w)
        self.gradient, self.error = torch.empty_like(self.w), torch.empty_like(self.w)

    def evaluate(self, codes: np.ndarray, book: np.ndarray, scale: np.ndarray, losses: np.ndarray) -> None:
        """Set units, errors and gradients of this state; losses [chunks] receives e^T H e."""
        _expand(codes, book, self.shared, self.units.numpy())
        torch.matmul(self.units, self.hessian, out=self.turned_units)
        self.rescaled(scale, losses)

    def rescaled(self, scale: np.ndarray, losses: np.ndarray) -> None:
        """The same after a change of the scales alone: no product is needed."""
        s = torch.from_numpy(scale.astype(np.float32))
        torch.addcmul(self.w, s, self.units, value=-1, out=self.error)
        torch.addcmul(self.turned_weights, s, self.turned_units, value=-1, out=self.gradient)
        _losses(self.error.numpy(), self.gradient.numpy(), self.shared, losses)

    def least_squares(self, codes: np.ndarray, book: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Real codebooks [chunks, levels] for fixed codes and scales, by preconditioned conjugate gradients."""
        chunks, levels = book.shape[0], book.shape[2]
        right, diagonal = np.empty((chunks, levels)), np.empty((chunks, levels))
        _gather(codes, self.gradient.numpy(), scale, self.shared, right)
        spread = np.broadcast_to(np.diagonal(self.hessian.numpy()), codes.shape)
        _gather(codes, np.ascontiguousarray(spread * scale.astype(np.float32)), scale, self.shared, diagonal)
        diagonal += 1e-9 * diagonal.sum(axis=1, keepdims=True) + 1e-300
        solution, residual = np.zeros_like(right), right.copy()
        direction = residual / diagonal
        size = (residual * direction).sum(axis=1, keepdims=True)
        x, turned = self.units, self.turned_units  # both are set anew by the next evaluate()
        applied = np.empty_like(right)
        for _ in range(_CONJUGATE_STEPS):
            _expand(codes, direction[:, None, :], self.shared, x.numpy())
            x *= torch.from_numpy(scale.astype(np.float32))
            torch.matmul(x, self.hessian, out=turned)
            _gather(codes, turned.numpy(), scale, self.shared, applied)
            slope = (direction * applied).sum(axis=1, keepdims=True)
            amount = np.divide(size, slope, out=np.zeros_like(size), where=slope > 0)
            solution += amount * direction
            residual -= amount * applied
            better = residual / diagonal
            new_size = (residual * better).sum(axis=1, keepdims=True)
            direction = better + np.divide(new_size, size, out=np.zeros_like(size), where=size > 0) * direction
            size = new_size
        return book[:, 0] + solution

    def rescale(self, scale: np.ndarray, half_scale: bool) -> None:
        """Least-squares scale of every row for fixed codes and codebooks, in place."""
        size = (self.units * self.turned_units).sum(dim=1).numpy()
        slope = (self.units * self.gradient).sum(dim=1).numpy()
        for r in range(scale.shape[0]):
            exact = scale[r, 0] + slope[r] / size[r] if size[r] > 0.0 else 0.0
            if exact > 0.0:
                scale[r, 0] = _half(exact) if half_scale else exact

    def descend(self, codes: np.ndarray, book: np.ndarray, scale: np.ndarray) -> int:
        """One cycle of coordinate descent over all codes; the gradient is kept up to date. Returns the changes."""
        columns, changes = codes.shape[1], 0
        for first in range(0, columns, _BLOCK):
            width = min(_BLOCK, columns - first)
            step = torch.empty((codes.shape[0], width))
            rows = self.hessian[first : first + width]
            changes += _descend_block(
                codes, book, scale, self.shared, self.gradient.numpy(), rows.numpy(), first, step.numpy()
            )
            self.gradient.addmm_(step, rows, alpha=-1)
        return int(changes)


def _slabs(chunks: int, shared: int, rows: int) -> list[tuple[slice, slice]]:
    """(chunks, rows) of each slab."""
    per = max(_SLAB // shared, 1)
    starts = range(0, chunks, per)
    return [(slice(c, min(c + per, chunks)), slice(c * shared, min((c + per) * shared, rows))) for c in starts]


def start(w, hessian, factor, order, curvature, shared, own_scales, half_scale, codes, book, scale, losses):  # type: ignore[no-untyped-def]
    """solver.start for one group: cluster, then sweep, and keep the better for every codebook. Same arguments."""
    turned = torch.from_numpy(np.ascontiguousarray(hessian, np.float32))
    upper = torch.from_numpy(np.ascontiguousarray(factor, np.float32))

    def one(part: tuple[slice, slice]) -> None:
        chunks, rows = part
        slab = _Slab(w[rows], turned, shared)
        c, b, s, out = codes[rows], book[chunks], scale[rows], losses[chunks]
        _cluster(w[rows], order, curvature, shared, own_scales, half_scale, c, b, s)
        slab.evaluate(c, b, s, out[:, 0])
        swept = c.copy()
        _sweep(slab.w, upper, order, shared, swept, b, s)
        slab.evaluate(swept, b, s, out[:, 1])
        better = np.repeat(out[:, 1] <= out[:, 0], shared)[: c.shape[0]]
        c[better] = swept[better]
        out[:, 1] = np.minimum(out[:, 0], out[:, 1])

    for _ in ordered(one, _slabs(book.shape[0], shared, w.shape[0])):
        pass


def _sweep(w: torch.Tensor, factor: torch.Tensor, order, shared, codes, book, scale):  # type: ignore[no-untyped-def]
    work = w[:, torch.from_numpy(np.ascontiguousarray(order))].contiguous()
    columns = work.shape[1]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        spread = torch.empty((work.shape[0], last - first))
        part = factor[first:last, first:last].contiguous()
        _sweep_block(work.numpy(), part.numpy(), order, first, shared, codes, book, scale, spread.numpy())
        if last < columns:
            work[:, last:].addmm_(spread, factor[first:last, last:], alpha=-1)


def refine(w, hessian, shared, fixed_scale, own_scales, half_scale, passes, codes, book, scale, losses):  # type: ignore[no-untyped-def]
    """solver.refine for one group: the loss of no codebook ends above where it began. Same arguments."""
    turned = torch.from_numpy(np.ascontiguousarray(hessian, np.float32))

    def one(part: tuple[slice, slice]) -> None:
        chunks, rows = part
        slab = _Slab(w[rows], turned, shared)
        c, b, s, best_loss = codes[rows], book[chunks], scale[rows], losses[chunks]
        slab.evaluate(c, b, s, best_loss)
        best = (c.copy(), b.copy(), s.copy())
        loss = np.empty_like(best_loss)
        for _ in range(passes):
            _round_all(slab.least_squares(c, b, s), shared, fixed_scale, half_scale, b, s)
            slab.evaluate(c, b, s, loss)
            if own_scales and not fixed_scale:
                slab.rescale(s, half_scale)
                slab.rescaled(s, loss)
            for _cycle in range(3):
                if slab.descend(c, b, s) * 1000 < c.size:
                    break
            slab.evaluate(c, b, s, loss)
            better = loss < best_loss
            by_row = np.repeat(better, shared)[: c.shape[0]]
            best[0][by_row], best[1][better], best[2][by_row] = c[by_row], b[better], s[by_row]
            best_loss[better] = loss[better]
        c[:], b[:], s[:] = best

    for _ in ordered(one, _slabs(book.shape[0], shared, w.shape[0])):
        pass
