"""The solver of scalar codes in torch, on whatever device: the moves of scalar_batched.py, all rows at once.

For matrices with one codebook along a row. float32 throughout, sums and least squares in float64 where the device has
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toolchain.quantize.solvers.on_device.kmeans import bins, kmeans
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT
from toolchain.system.device import wide
from toolchain.system.threads import pieces

_BLOCK = 128  # columns treated exactly before the others hear of it
_CONJUGATE_STEPS = 6  # of the least squares
_CYCLES = 3  # of coordinate descent a pass
_ROOM = 1 << 26  # numbers held at a time by k-means
_LEAST_HALF = 2.0**-24  # the smallest float16


class TorchScalar:
    """start() and refine() of scalar_batched.py on a device: the same arrays go in and are set in place."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(
        self, w: np.ndarray, hessian: np.ndarray, factor: np.ndarray, order: np.ndarray, curvature: np.ndarray,
        shared: int, own_scales: bool, half_scale: bool, codes: np.ndarray, book: np.ndarray, scale: np.ndarray,
        losses: np.ndarray,
    ) -> None:  # fmt: skip
        """Cluster, then sweep, and keep the better for every codebook."""
        problem = _Problem.of(w, hessian, shared, self._device)
        weight = self._there(curvature)
        base = torch.ones(len(w), device=self._device)
        if own_scales:
            base = ((problem.w.square() @ weight) / weight.sum()).sqrt().clamp_min(1e-30)
        levels = problem.clustered(base, weight, book.shape[2])
        levels, own = problem.rounded(levels, base, half_scale)
        state = _State(_nearest(levels[problem.chunk], _over(problem.w, own[:, None])), levels, own)
        clustering = problem.losses(state)
        swept = problem.swept(state, self._there(factor), torch.from_numpy(order).to(self._device))
        state, sweep = problem.better(state, clustering, swept, problem.losses(swept))
        state.into(codes, book, scale)
        losses[:, 0], losses[:, 1] = clustering.cpu().numpy(), sweep.cpu().numpy()

    def refine(
        self, w: np.ndarray, hessian: np.ndarray, shared: int, fixed_scale: bool, own_scales: bool, half_scale: bool,
        passes: int, codes: np.ndarray, book: np.ndarray, scale: np.ndarray, losses: np.ndarray,
    ) -> None:  # fmt: skip
        """Rounds of least squares and coordinate descent; the loss of no codebook ends above where it began."""
        problem = _Problem.of(w, hessian, shared, self._device)
        state = _State(self._there(codes).long(), self._there(book[:, 0]), self._there(scale[:, 0]))
        best, best_losses = state, problem.losses(state)
        for _ in range(passes):
            real = problem.least_squares(state)
            if fixed_scale:
                state = _State(state.codes, real.round().clamp(-LEVEL_LIMIT, LEVEL_LIMIT), state.scale)
            else:
                state = _State(state.codes, *problem.rounded(real, state.scale, half_scale))
                state = problem.rescaled(state, half_scale) if own_scales else state
            state = problem.descended(state)
            best, best_losses = problem.better(best, best_losses, state, problem.losses(state))
        best.into(codes, book, scale)
        losses[:] = best_losses.cpu().numpy()

    def _there(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device)


@dataclass(frozen=True)
class _State:
    """A solution: w' = scale * book[chunk of the row, codes]."""

    codes: torch.Tensor  # int64 [N, K]
    book: torch.Tensor  # float32 [chunks, levels], whole numbers
    scale: torch.Tensor  # float32 [N]

    def into(self, codes: np.ndarray, book: np.ndarray, scale: np.ndarray) -> None:
        codes[:], book[:, 0], scale[:, 0] = (v.cpu().numpy() for v in (self.codes, self.book, self.scale))


@dataclass(frozen=True)
class _Problem:
    """Rows [N, K] under one Hessian [K, K]; `shared` of them have a codebook in common."""

    w: torch.Tensor
    h: torch.Tensor
    chunk: torch.Tensor  # int64 [N]: the codebook of each row
    chunks: int

    @classmethod
    def of(cls, w: np.ndarray, hessian: np.ndarray, shared: int, device: torch.device) -> _Problem:
        rows, h = (torch.from_numpy(values.astype(np.float32)).to(device) for values in (w, hessian))
        return cls(rows, h, torch.arange(len(w), device=device) // shared, -(-len(w) // shared))

    def by_chunk(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of values [N] by codebook [chunks]."""
        out = torch.zeros(self.chunks, dtype=wide(values.device), device=values.device)
        return out.index_add_(0, self.chunk, values.to(out.dtype))

    def units(self, codes: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        """What the codes stand for before scaling [N, K]."""
        return book[self.chunk].gather(1, codes)

    def error(self, state: _State) -> torch.Tensor:
        return self.w - self.units(state.codes, state.book).mul_(state.scale[:, None])

    def losses(self, state: _State) -> torch.Tensor:
        """e^T H e summed over the rows of each codebook [chunks]."""
        error = self.error(state)
        return self.by_chunk((error @ self.h).mul_(error).sum(dim=1, dtype=wide(error.device)))

    def better(
        self, old: _State, old_losses: torch.Tensor, new: _State, new_losses: torch.Tensor
    ) -> tuple[_State, torch.Tensor]:
        """The solution of lower loss for each codebook; the old one where they are equal."""
        gain = new_losses < old_losses
        rows = gain[self.chunk]
        codes = torch.where(rows[:, None], new.codes, old.codes)
        book = torch.where(gain[:, None], new.book, old.book)
        return _State(codes, book, torch.where(rows, new.scale, old.scale)), torch.where(gain, new_losses, old_losses)

    def clustered(self, base: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
        """Curvature-weighted k-means [chunks, count] of each codebook's rows over their relative scales `base` [N]."""
        full = int((self.chunk == 0).sum())
        found = []
        whole = len(self.w) // full * full
        for part in (slice(0, whole), slice(whole, len(self.w))):
            if part.stop > part.start:
                rows = min(full, part.stop - part.start)
                scale = base[part, None]
                values = (self.w[part] / scale).reshape(-1, rows * self.w.shape[1])
                mass = (weight * scale.square()).reshape(values.shape)
                step = max(1, _ROOM // max(values.shape[1] * 4, bins(count) ** 2))
                found += [kmeans(values[p], mass[p], count) for p in pieces(len(values), step)]
        return torch.cat(found)

    def rounded(self, real: torch.Tensor, base: torch.Tensor, half_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Real codebooks as int8 levels, and the scales of rows whose relative scales are `base`."""
        largest = real.abs().amax(dim=1, keepdim=True)
        largest = torch.where(largest > 0, largest, 1.0)
        scale = base * (largest[:, 0] / LEVEL_LIMIT)[self.chunk]
        book = (real / largest * LEVEL_LIMIT).round()
        return book, _half(scale) if half_scale else scale

    def swept(self, state: _State, factor: torch.Tensor, order: torch.Tensor) -> _State:
        """Columns in order: round to the codebook, let all later columns absorb the error."""
        work, codes, levels = self.w[:, order], state.codes.clone(), state.book[self.chunk]
        scale = state.scale[:, None]
        for first in range(0, len(order), _BLOCK):
            last = min(first + _BLOCK, len(order))
            own, part = work[:, first:last], factor[first:last, first:last]
            spread = torch.empty_like(own)
            for p in range(last - first):
                value = own[:, p : p + 1]
                code = _nearest(levels, _over(value, scale))
                spread[:, p : p + 1] = (value - scale * levels.gather(1, code)) / part[p, p]
                codes[:, order[first + p]] = code[:, 0]
                own[:, p:] -= spread[:, p : p + 1] * part[p, p:]
            work[:, last:] -= spread @ factor[first:last, last:]
        return _State(codes, state.book, state.scale)

    def descended(self, state: _State) -> _State:
        """Cycles of coordinate descent over all codes; never raises the loss."""
        codes, levels, scale = state.codes.clone(), state.book[self.chunk], state.scale[:, None]
        gradient, diagonal = self.error(state) @ self.h, self.h.diagonal()
        columns = len(self.h)
        for _ in range(_CYCLES):
            before = codes.clone()
            for first in range(0, columns, _BLOCK):
                last = min(first + _BLOCK, columns)
                local, step = gradient[:, first:last].clone(), torch.empty_like(gradient[:, first:last])
                for p in range(last - first):
                    k = first + p
                    old, target = levels.gather(1, codes[:, k : k + 1]), local[:, p : p + 1] / diagonal[k]
                    code = _nearest(levels, old + _over(target, scale))
                    move = scale * (levels.gather(1, code) - old)
                    gain = move * (move - 2.0 * target) < 0.0  # strictly better only
                    step[:, p : p + 1] = torch.where(gain, move, 0.0)
                    codes[:, k : k + 1] = torch.where(gain, code, codes[:, k : k + 1])
                    local[:, p:] -= step[:, p : p + 1] * self.h[k, k:last]
                gradient -= step @ self.h[first:last]
            if int((codes != before).sum().cpu()) * 1000 < codes.numel():
                break
        return _State(codes, state.book, state.scale)

    def least_squares(self, state: _State) -> torch.Tensor:
        """Real codebooks [chunks, levels] for fixed codes and scales, by preconditioned conjugate gradients."""
        count, scale = state.book.shape[1], state.scale[:, None]
        place = (state.codes + self.chunk[:, None] * count).view(-1)

        def gathered(values: torch.Tensor) -> torch.Tensor:
            flat = (values * scale).reshape(-1).to(wide(values.device))
            out = torch.zeros(self.chunks * count, dtype=flat.dtype, device=flat.device)
            return out.scatter_add_(0, place, flat).view(self.chunks, count)

        residual = gathered(self.error(state) @ self.h)
        diagonal = gathered((self.h.diagonal() * scale).expand_as(self.w))
        diagonal = diagonal + 1e-9 * diagonal.sum(dim=1, keepdim=True) + 1e-30
        solution, direction = torch.zeros_like(residual), residual / diagonal
        size = (residual * direction).sum(dim=1, keepdim=True)
        for _ in range(_CONJUGATE_STEPS):
            applied = gathered((self.units(state.codes, direction.float()) * scale) @ self.h)
            amount = _ratio(size, (direction * applied).sum(dim=1, keepdim=True))
            solution = solution + amount * direction
            residual = residual - amount * applied
            better = residual / diagonal
            previous, size = size, (residual * better).sum(dim=1, keepdim=True)
            direction = better + _ratio(size, previous) * direction
        return state.book + solution.float()

    def rescaled(self, state: _State, half_scale: bool) -> _State:
        """Least-squares scale of every row for fixed codes and codebooks."""
        units = self.units(state.codes, state.book)
        turned = units @ self.h
        size = (turned * units).sum(dim=1, dtype=wide(units.device))
        slope = (turned * self.w).sum(dim=1, dtype=wide(units.device))
        exact = _ratio(slope, size).float()
        scale = torch.where(exact > 0, _half(exact) if half_scale else exact, state.scale)
        return _State(state.codes, state.book, scale)


def _nearest(levels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index int64 [N, k] of the level of levels [N, L] nearest to each target [N, k]."""
    step = max(1, _ROOM // levels.numel())
    parts = [(levels[:, None] - part[..., None]).abs_().argmin(dim=-1) for part in target.split(step, dim=1)]
    return torch.cat(parts, dim=1)


def _over(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """values / scale; zero where the scale is."""
    return torch.where(scale > 0, values / torch.where(scale > 0, scale, 1.0), 0.0)


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """above / below where that is positive, else zero."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Rounded to float16; what is positive stays so."""
    return torch.where(values > 0, values.half().float().clamp_min(_LEAST_HALF), 0.0)
