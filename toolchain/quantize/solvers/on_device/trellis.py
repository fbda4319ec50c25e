"""The solver of trellis codes in torch, on whatever device: the moves of viterbi/solver.py, all codebooks at once.

Problems that differ in their rows alone (codebooks of one matrix under one Hessian) are solved together: a column of
all of them is one step. float32 throughout, sums and least squares in float64 where the device has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from export.contract.formats.halves import HALF
from export.contract.formats.trellis import STANDARD_STATE_BITS, SUMS, UNIT, standard_levels
from toolchain.quantize.solvers.on_device.paths import best_paths, row_weights
from toolchain.quantize.solvers.viterbi.levels import levels_of, means, rounded
from toolchain.quantize.solvers.viterbi.solver import BOOK_ROWS, ROUNDS, SAMPLE, Problem, State
from toolchain.system.device import wide

_BLOCK = 64  # columns treated exactly before the others hear of it
_GRADIENT_STEPS = 6  # of conjugate gradients
_GOAL = 1e-10  # of the residual's square, relative to its first


class TorchTrellis:
    """What trellis.InThreads is on the processor."""

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device | None = device
        self._there = device

    def solve(
        self, problems: Sequence[Problem], sweeps: Sequence[tuple[np.ndarray, np.ndarray]], passes: int, seed: int
    ) -> list[tuple[State, dict[str, float]]]:
        found: dict[int, tuple[State, dict[str, float]]] = {}
        for members in _alike(problems):
            batch = _Batch.of([problems[i] for i in members], self._there)
            factor, order = sweeps[members[0]]
            draws = [np.random.default_rng((seed, i)) for i in members]
            states = _clustered(batch, min(3 * max(passes, 1), ROUNDS), draws)
            clustering = batch.losses(states)
            upper = torch.from_numpy(factor.astype(np.float32)).to(self._there)
            swept = _swept(batch, upper, torch.from_numpy(order).to(self._there), states)
            sweep = batch.losses(swept)
            swept, sweep = _better(states, clustering, swept, sweep)
            states, refinement = _refined(batch, swept, sweep, passes, fixed_scale=False)
            steps = torch.stack([clustering, sweep, refinement]).cpu().tolist()
            for place, state, *losses in zip(members, states.parts(problems[members[0]]), *steps):
                found[place] = state, dict(zip(("clustering", "sweep", "refinement"), losses))
        return [found[i] for i in range(len(problems))]

    def settle(self, problems: Sequence[Problem], states: Sequence[State], passes: int) -> list[tuple[State, float]]:
        found: dict[int, tuple[State, float]] = {}
        for members in _alike(problems):
            batch = _Batch.of([problems[i] for i in members], self._there)
            given = _States.of([states[i] for i in members], self._there)
            best, losses = _refined(batch, given, batch.losses(given), passes, fixed_scale=True)
            found |= dict(zip(members, zip(best.parts(problems[members[0]]), losses.cpu().tolist())))
        return [found[i] for i in range(len(problems))]


def _alike(problems: Sequence[Problem]) -> list[list[int]]:
    """Places of the problems that can be solved together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, problem in enumerate(problems):
        groups.setdefault((id(problem.h), problem.w.shape[1]), []).append(i)
    return list(groups.values())


@dataclass(frozen=True)
class _Batch:
    """C problems of R rows and K columns under one Hessian."""

    w: torch.Tensor  # float32 [C, K, R]
    h: torch.Tensor  # float32 [K, K]
    bits: int
    state_bits: int
    standard: bool
    edition: int

    @property
    def sums(self) -> bool:
        return self.edition == SUMS

    @classmethod
    def of(cls, problems: Sequence[Problem], device: torch.device) -> _Batch:
        one, w = problems[0], np.stack([problem.w for problem in problems]).astype(np.float32)
        h = torch.from_numpy(one.h.astype(np.float32)).to(device)
        return cls(torch.from_numpy(w).to(device), h, one.bits, one.state_bits, one.standard, one.edition)

    def losses(self, states: _States) -> torch.Tensor:
        """tr(E^T H E) of each problem [C]."""
        error = self.w - states.weights()
        return (self.h @ error).mul_(error).sum(dim=(1, 2), dtype=wide(error.device))


@dataclass(frozen=True)
class _States:
    """Solutions of a batch."""

    states: torch.Tensor  # int64 [C, K, R]
    book: torch.Tensor  # float32 [C, 2**state_bits]
    scale: torch.Tensor  # float32 [C, R]

    @classmethod
    def of(cls, states: Sequence[State], device: torch.device) -> _States:
        path, book, scale = (
            torch.from_numpy(np.stack([getattr(state, name) for state in states])).to(device)
            for name in ("states", "book", "scale")
        )
        return cls(path.long(), book.float(), scale.float())

    def parts(self, problem: Problem) -> list[State]:
        """One by one, in the types of the solver on the processor."""
        path, book, scale = (value.cpu().numpy() for value in (self.states.int(), self.book, self.scale))
        return [State(path[i], book[i], scale[i].astype(problem.w.dtype)) for i in range(len(path))]

    def levels(self) -> torch.Tensor:
        """What the states stand for [C, K, R]."""
        return looked_up(self.book, self.states)

    def weights(self) -> torch.Tensor:
        return self.levels().mul_(self.scale[:, None, :])


def looked_up(book: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """book [C, S] at states [C, ...]."""
    return book.gather(1, states.reshape(len(book), -1)).view(states.shape)


def _better(
    old: _States, old_losses: torch.Tensor, new: _States, new_losses: torch.Tensor
) -> tuple[_States, torch.Tensor]:
    """The solution of lower loss for each problem; the old one where they are equal."""
    gain = new_losses < old_losses
    path = torch.where(gain[:, None, None], new.states, old.states)
    book, scale = (
        torch.where(gain[:, None], getattr(new, name), getattr(old, name)) for name in ("book", "scale")
    )  # fmt: skip
    return _States(path, book, scale), torch.where(gain, new_losses, old_losses)


def _refined(
    batch: _Batch, states: _States, losses: torch.Tensor, passes: int, fixed_scale: bool
) -> tuple[_States, torch.Tensor]:
    """Rounds of least-squares scales (unless fixed), codebooks and paths; the best solution of each problem."""
    if passes == 0:
        return states, losses
    best, best_losses = states, losses
    wanted = batch.h @ batch.w
    gradient = wanted - batch.h @ states.weights()  # H (W - W'), kept up to date
    for _ in range(passes):
        if not fixed_scale:
            states, gradient = _with_fitted_scales(batch, states, wanted, gradient)
        if not batch.standard:
            states = _rounded(batch, _with_fitted_books(batch, states, gradient), fixed_scale)
            gradient = batch.h @ (batch.w - states.weights())
        states, gradient = _with_improved_paths(batch, states, gradient)
        found = (gradient * (batch.w - states.weights())).sum(dim=(1, 2), dtype=wide(gradient.device))
        best, best_losses = _better(best, best_losses, states, found)
    return best, best_losses


def _clustered(batch: _Batch, rounds: int, draws: Sequence[np.random.Generator]) -> _States:
    w, device = batch.w, batch.w.device
    books, columns, rows = w.shape
    count = 1 << batch.state_bits
    scale = w.square().mean(dim=1).sqrt()
    scale = torch.where(scale == 0.0, 1.0, scale)
    weight = row_weights(scale)  # [C, R]
    standard = torch.from_numpy(standard_levels(batch.bits, batch.edition).astype(np.float32)).to(device)
    if batch.standard:
        book, scale = standard.repeat(books, 1), scale / UNIT
    else:
        book = (standard / UNIT).repeat(books, 1)
        if batch.state_bits != STANDARD_STATE_BITS[batch.bits]:
            drawn = np.stack([rng.standard_normal(count) for rng in draws]).astype(np.float32)
            book = torch.from_numpy(drawn).to(device)
        size = max(1, SAMPLE // rows)
        chosen = torch.from_numpy(np.stack([np.sort(rng.permutation(columns)[:size]) for rng in draws])).to(device)
        sample = w.gather(1, chosen[:, :, None].expand(-1, -1, rows)) / scale[:, None, :]
        mass_of = batch.h.diagonal()[chosen][:, :, None] * weight[:, None, :]
        for _ in range(rounds):
            path = best_paths(batch.bits, sample, weight, book)
            mass, total = _by_state(mass_of, path, count), _by_state(mass_of * sample, path, count)
            book = _means(batch, mass, total, book)
        fresh = _rounded(batch, _States(chosen, book, scale), fixed_scale=False)
        book, scale = fresh.book, fresh.scale
    path = best_paths(batch.bits, w / scale[:, None, :], weight, book)
    return _States(path, book, scale)


def _swept(batch: _Batch, factor: torch.Tensor, order: torch.Tensor, start: _States) -> _States:
    """Columns in order: the best path each, errors passed on to later ones."""
    path, weight, scale = start.states.clone(), row_weights(start.scale), start.scale
    work = batch.w[:, order]
    for first in range(0, len(order), _BLOCK):
        last = min(first + _BLOCK, len(order))
        own, part = work[:, first:last], factor[first:last, first:last]
        spread = torch.empty_like(own)
        for p in range(last - first):
            states = best_paths(batch.bits, (own[:, p] / scale)[:, None], weight, start.book)[:, 0]
            spread[:, p] = (own[:, p] - scale * looked_up(start.book, states)) / part[p, p]
            path[:, order[first + p]] = states
            own[:, p:] -= part[p, p:, None] * spread[:, p, None, :]
        work[:, last:] -= factor[first:last, last:].T @ spread
    return _States(path, start.book, scale)


def _with_improved_paths(batch: _Batch, given: _States, gradient: torch.Tensor) -> tuple[_States, torch.Tensor]:
    """One pass of coordinate descent over the columns, which never raises the loss; the gradient [C, K, R] after it."""
    book, scale, path, h = given.book, given.scale, given.states.clone(), batch.h
    weight, diagonal = row_weights(scale), batch.h.diagonal()
    gradient = gradient.clone()
    for first in range(0, len(h), _BLOCK):
        last = min(first + _BLOCK, len(h))
        local, step = gradient[:, first:last].clone(), torch.empty_like(gradient[:, first:last])
        for p in range(last - first):
            k = first + p
            old, wanted = looked_up(book, path[:, k]), local[:, p] / diagonal[k]
            fresh = best_paths(batch.bits, (old + wanted / scale)[:, None], weight, book)[:, 0]
            move = scale * (looked_up(book, fresh) - old)
            gain = (move * (2.0 * wanted - move)).sum(dim=1, keepdim=True) > 0.0
            step[:, p] = torch.where(gain, move, 0.0)
            path[:, k] = torch.where(gain, fresh, path[:, k])
            local[:, p:] -= h[k, k:last, None] * step[:, p, None, :]
        gradient -= h[:, first:last] @ step
    return replace(given, states=path), gradient


def _by_state(values: torch.Tensor, path: torch.Tensor, count: int) -> torch.Tensor:
    """Sums of values [C, K, R] by state [C, count]."""
    flat = values.reshape(len(values), -1).to(wide(values.device))
    return torch.zeros((len(flat), count), dtype=flat.dtype, device=flat.device).scatter_add_(
        1, path.reshape(len(path), -1), flat
    )


def _with_fitted_books(batch: _Batch, given: _States, gradient: torch.Tensor) -> _States:
    """Least-squares codebooks for fixed paths and scales, from some of the rows; entries that none uses stay."""
    few = slice(None, None, max(1, batch.w.shape[2] // BOOK_ROWS))
    part = _States(given.states[:, :, few].contiguous(), given.book, given.scale[:, few])
    count, scale = given.book.shape[1], part.scale[:, None, :]

    design = _design(batch, wide(scale.device))

    def gathered(values: torch.Tensor) -> torch.Tensor:
        return _by_state(values * scale, part.states, count) @ design

    diagonal = gathered((batch.h.diagonal()[:, None] * scale).expand(part.states.shape))
    diagonal = torch.where(diagonal > 0, diagonal, torch.inf)
    residual = gathered(gradient[:, :, few])
    book = given.book.to(residual.dtype)
    step = residual / diagonal
    length = (residual * step).sum(dim=1, keepdim=True)
    goal = _GOAL * length
    for _ in range(_GRADIENT_STEPS):
        image = gathered(batch.h @ replace(part, book=(step @ design.T).float()).weights())
        slope = (step * image).sum(dim=1, keepdim=True)
        going = (length > goal) & (slope > 0)  # a problem that is done stays where it is
        rate = torch.where(going, length / torch.where(going, slope, 1.0), 0.0)
        book = book + rate * (step @ design.T)
        residual = residual - rate * image
        again = residual / diagonal
        previous, length = length, (residual * again).sum(dim=1, keepdim=True)
        step = again + torch.where(going, length / torch.where(going, previous, 1.0), 0.0) * step
    return replace(given, book=book.float())


def _design(batch: _Batch, dtype: torch.dtype) -> torch.Tensor:
    """[S, E]: which entries a level is the sum of (viterbi/levels.py)."""
    entries = np.eye(2 * HALF if batch.sums else 1 << batch.state_bits)
    return torch.from_numpy(levels_of(entries, batch.bits, batch.sums).T.copy()).to(batch.w.device, dtype)


def _means(batch: _Batch, mass: torch.Tensor, total: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """viterbi.levels.means of each problem; all [C, S]."""
    given = [value.double().cpu().numpy() for value in (mass, total, before)]
    found = [means(m, t, b, batch.bits, batch.sums) for m, t, b in zip(*given)]
    return torch.from_numpy(np.stack(found).astype(np.float32)).to(batch.w.device)


def _rounded(batch: _Batch, given: _States, fixed_scale: bool) -> _States:
    """Entries to int8 levels; free scales take up the change of unit."""
    books = given.book.cpu().numpy()
    found = [rounded(book, batch.bits, batch.sums, not fixed_scale) for book in books]
    book = torch.from_numpy(np.stack([levels for levels, _ in found])).to(batch.w.device)
    factor = torch.tensor([[1.0 if fixed_scale else factor] for _, factor in found], device=batch.w.device)
    return _States(given.states, book, given.scale / factor)


def _with_fitted_scales(
    batch: _Batch, given: _States, wanted: torch.Tensor, gradient: torch.Tensor
) -> tuple[_States, torch.Tensor]:
    """Least-squares scale of every row for fixed paths and codebooks; wanted: H W. The gradient [C, K, R] after it."""
    levels = given.levels()
    image = (wanted - gradient) / given.scale[:, None, :]  # H times the levels
    size = (image * levels).sum(dim=1, dtype=wide(image.device))
    slope = (image * batch.w).sum(dim=1, dtype=wide(image.device))
    best = slope / torch.where(size > 0, size, 1.0)
    scale = torch.where((size > 0) & (best > 0), best, given.scale.to(best.dtype)).float()
    return replace(given, scale=scale), wanted - image * scale[:, None, :]
