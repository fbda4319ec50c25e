"""Solves one matrix of trellis codes under the full Hessian: clustering, sweep, then codebooks and codes in turn.

The objective is that of solver.py, tr(E H E^T) with E = W - W', and so are the moves; only the nearest level of one
weight becomes the best path of one column (paths.py):

- clustering: paths and centroids in turn, from the standard levels, weighted by the Hessian's diagonal;
- the sweep gives one column after another its best path, later columns absorb the error (arXiv 2405.17470);
- codebooks for fixed paths are least squares in their entries, by preconditioned conjugate gradients;
- paths for fixed codebooks are improved by coordinate descent: the best path of a column while all others stay.

Codebook entries are int8 at every point where a loss is measured. Matrices are transposed, [columns, rows].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.contract.formats.trellis import ANY, STANDARD_STATE_BITS, SUMS, UNIT, standard_levels
from toolchain.quantize.solvers.viterbi.column import Kind, trellis_kind
from toolchain.quantize.solvers.viterbi.levels import by_entry, levels_of, means, rounded
from toolchain.quantize.solvers.viterbi.paths import descend, nearest, sweep

ROUNDS = 12  # of clustering at most; three for every pass of refinement
SAMPLE = 1 << 16  # weights that clustering looks at
_BLOCK = 64  # columns treated exactly before the others hear of it
_GRADIENT_STEPS = 6  # of conjugate gradients
BOOK_ROWS = 128  # that a codebook is fitted to, at least: 2**state_bits unknowns need no more


@dataclass(frozen=True)
class Problem:
    """Rows that share a codebook, and what they are measured by."""

    w: np.ndarray  # float [K, R], the transposed weights
    h: np.ndarray  # float [K, K], damped
    bits: int
    state_bits: int
    standard: bool = False  # the levels are the standard ones and stay
    sums: bool = False  # the levels are sums of two tables

    @property
    def edition(self) -> int:
        """Of the standard levels."""
        return SUMS if self.sums else ANY

    @property
    def kind(self) -> Kind:
        return trellis_kind(self.bits, self.state_bits)

    def loss(self, state: State) -> float:
        error = self.w - state.weights()
        return float(np.einsum("kr,kr->", self.h @ error, error, dtype=np.float64))


@dataclass
class State:
    """A solution: W'^T = book[states] * scale."""

    states: np.ndarray  # int32 [K, R]
    book: np.ndarray  # float32 [2**state_bits], whole numbers once rounded
    scale: np.ndarray  # float64 [R]

    def weights(self) -> np.ndarray:
        """float64 [K, R], or float32 where the scales are."""
        return self.book[self.states].astype(self.scale.dtype) * self.scale

    def copy(self) -> State:
        return State(self.states.copy(), self.book.copy(), self.scale.copy())


def solve(
    problem: Problem, factor: np.ndarray, order: np.ndarray, passes: int, rng: np.random.Generator
) -> tuple[State, dict[str, float]]:
    """A solution and its losses by step; factor [K, K] = inverse_factor of the Hessian permuted by order [K]."""
    state = _clustered(problem, min(3 * max(passes, 1), ROUNDS), rng)
    losses = {"clustering": problem.loss(state)}
    swept = _swept(problem, factor, order, state)
    losses["sweep"] = problem.loss(swept)
    if losses["sweep"] > losses["clustering"]:  # a matrix that little is to be gained from
        swept, losses["sweep"] = state, losses["clustering"]
    state, losses["refinement"] = refined(problem, swept, losses["sweep"], passes, fixed_scale=False)
    return state, losses


def refined(problem: Problem, state: State, loss: float, passes: int, fixed_scale: bool) -> tuple[State, float]:
    """Rounds of least-squares scales (unless fixed), codebooks and paths; the best state of all."""
    if passes == 0:
        return state, loss
    best, best_loss = state, loss
    wanted = problem.h @ problem.w
    gradient = (
        wanted - problem.h @ state.weights()
    )  # H (W - W'), kept up to date: products with H take most of the time
    for _ in range(passes):
        state = state.copy()
        if not fixed_scale:
            gradient = _fit_scales(problem, state, wanted, gradient)
        if not problem.standard:
            _fit_book(problem, state, gradient)
            _round_book(problem, state, fixed_scale)
            gradient = problem.h @ (problem.w - state.weights())
        _improve_paths(problem, state, gradient)
        loss = float(np.einsum("kr,kr->", gradient, problem.w - state.weights(), dtype=np.float64))
        if loss < best_loss:
            best, best_loss = state, loss
    return best, best_loss


def _clustered(problem: Problem, rounds: int, rng: np.random.Generator) -> State:
    w = problem.w
    columns, rows = w.shape
    scale = np.sqrt(np.mean(w.astype(np.float64) ** 2, axis=0)).astype(w.dtype)
    scale[scale == 0.0] = 1.0
    curvature = np.diag(problem.h)
    weight = (scale / scale.mean()).astype(np.float32) ** 2
    count = 1 << problem.state_bits
    known = problem.state_bits == STANDARD_STATE_BITS[problem.bits]
    if known:
        book = standard_levels(problem.bits, problem.edition) / np.float32(UNIT)
    else:
        book = rng.standard_normal(count).astype(np.float32)
    targets = (w / scale).astype(np.float32)
    chosen = np.sort(rng.permutation(columns)[: max(1, SAMPLE // rows)])
    sample = np.ascontiguousarray(targets[chosen])
    mass_of = curvature[chosen][:, None] * weight.astype(np.float64)
    states = np.empty(sample.shape, np.int32)
    for _ in range(0 if problem.standard else rounds):
        nearest(problem.kind, sample, weight, book, states)
        mass = np.bincount(states.ravel(), mass_of.ravel(), count)
        total = np.bincount(states.ravel(), (mass_of * sample).ravel(), count)
        book = means(mass, total, book, problem.bits, problem.sums).astype(np.float32)
    state = State(np.empty(w.shape, np.int32), book, scale)
    if problem.standard:
        state.book = standard_levels(problem.bits, problem.edition).astype(np.float32)
        state.scale = scale / w.dtype.type(UNIT)
    else:
        _round_book(problem, state, fixed_scale=False)
    nearest(problem.kind, (w / state.scale).astype(np.float32), weight, state.book, state.states)
    return state


def _swept(problem: Problem, factor: np.ndarray, order: np.ndarray, start: State) -> State:
    """Columns in order: the best path each, errors passed on to later ones."""
    state = start.copy()
    work = problem.w[order]
    for first in range(0, len(order), _BLOCK):
        own = slice(first, min(first + _BLOCK, len(order)))
        states, spread = np.empty(work[own].shape, np.int32), np.empty_like(work[own])
        sweep(problem.kind, work[own], np.ascontiguousarray(factor[own, own]), state.scale, state.book, states, spread)
        state.states[order[own]] = states
        work[own.stop :] -= factor[own, own.stop :].T @ spread
    return state


def _improve_paths(problem: Problem, state: State, gradient: np.ndarray) -> None:
    """One pass of coordinate descent over the columns; never raises the loss. gradient [K, R] follows."""
    for first in range(0, len(gradient), _BLOCK):
        own = slice(first, first + _BLOCK)
        step = np.empty_like(gradient[own])
        hessian = np.ascontiguousarray(problem.h[own, own])
        descend(problem.kind, state.states[own], gradient[own].copy(), hessian, state.scale, state.book, step)
        gradient -= problem.h[:, own] @ step


def _gathered(values: np.ndarray, state: State) -> np.ndarray:
    """Sums of values [K, R] by state, times the rows' scales: the transpose of the look-up, float64."""
    return np.bincount(state.states.ravel(), (values * state.scale).ravel(), state.book.size)


def _fit_book(problem: Problem, state: State, gradient: np.ndarray) -> None:
    """Least-squares codebook for fixed paths and scales, from some of the rows; entries that none uses stay.

    gradient: H (W - W') [K, R]. The unknowns are what the levels are made of (levels.py).
    """
    form = problem.bits, problem.sums
    few = slice(None, None, max(1, problem.w.shape[1] // BOOK_ROWS))
    h = problem.h.astype(np.float32)  # only a direction; losses are measured with the full one
    part = State(np.ascontiguousarray(state.states[:, few]), state.book, state.scale[few].astype(np.float32))
    own = np.broadcast_to(np.diag(h)[:, None] * part.scale, part.states.shape)
    diagonal = by_entry(_gathered(own, part), *form)
    diagonal[diagonal <= 0] = np.inf
    residual = by_entry(_gathered(gradient[:, few], part), *form)
    book = state.book.astype(np.float64)
    first = step = residual / diagonal
    length = float((residual * first).sum())
    goal = 1e-10 * length
    for _ in range(_GRADIENT_STEPS):
        if length <= goal:
            break
        moved = State(part.states, levels_of(step, *form).astype(np.float32), part.scale).weights()
        image = by_entry(_gathered(h @ moved, part), *form)
        rate = length / max(float((step * image).sum()), 1e-300)
        book += rate * levels_of(step, *form)
        residual = residual - rate * image
        again = residual / diagonal
        previous, length = length, float((residual * again).sum())
        step = again + length / previous * step
    state.book = book.astype(np.float32)


def _round_book(problem: Problem, state: State, fixed_scale: bool) -> None:
    """Entries to int8 levels; free scales take up the change of unit."""
    state.book, factor = rounded(state.book, problem.bits, problem.sums, not fixed_scale)
    if not fixed_scale:
        state.scale = state.scale / state.scale.dtype.type(factor)


def _fit_scales(problem: Problem, state: State, wanted: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Least-squares scale of every row for fixed paths and codebook; wanted: H W. The gradient [K, R] after it."""
    levels = state.book[state.states].astype(problem.w.dtype)
    image = (wanted - gradient) / state.scale  # H times the levels
    size = np.einsum("kr,kr->r", image, levels, dtype=np.float64)
    slope = np.einsum("kr,kr->r", image, problem.w, dtype=np.float64)
    best = slope / np.where(size > 0, size, 1.0)
    state.scale = np.where((size > 0) & (best > 0), best, state.scale).astype(problem.w.dtype)
    fresh: np.ndarray = wanted - image * state.scale
    return fresh
