"""Best paths through a trellis in Numba: the loops of the solver around the path of one column (column.py).

A column's states (export/contract/formats/trellis.py) serve targets t[r] with weights g[r] at the cost
sum g (t - level[s])^2. Matrices here are transposed, [columns, rows], so that a column is contiguous.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from toolchain.quantize.solvers.viterbi.column import Kind, best_path
from toolchain.system.threads import ordered, pieces

_PIECE = 64  # columns that one thread takes at a time


@nb.njit(cache=True, nogil=True)
def _columns(kind, targets, weights, levels, states):  # type: ignore[no-untyped-def]
    costs = np.empty((targets.shape[1], levels.size), np.float32)
    for j in range(targets.shape[0]):
        best_path(kind, targets[j], weights, levels, costs, states[j])


def nearest(kind: Kind, targets: np.ndarray, weights: np.ndarray, levels: np.ndarray, states: np.ndarray) -> None:
    """Best path of every column: float32 targets [K, R], weights [R] and levels; states int32 [K, R] are set."""

    def solve(part: slice) -> None:
        _columns(kind, targets[part], weights, levels, states[part])

    for _ in ordered(solve, pieces(len(targets), _PIECE)):
        pass


@nb.njit(cache=True, nogil=True)
def sweep(kind, work, factor, scale, levels, states, spread):  # type: ignore[no-untyped-def]
    """Columns of work [B, R] in turn: the best path, later columns absorb the error. factor [B, B]: inverse_factor."""
    weight, target = _weights(scale), np.empty(scale.size, np.float32)
    costs = np.empty((scale.size, levels.size), np.float32)
    for p in range(work.shape[0]):
        for r in range(scale.size):
            target[r] = work[p, r] / scale[r]
        best_path(kind, target, weight, levels, costs, states[p])
        for r in range(scale.size):
            spread[p, r] = (work[p, r] - scale[r] * levels[states[p, r]]) / factor[p, p]
        for q in range(p, work.shape[0]):
            for r in range(scale.size):
                work[q, r] -= factor[p, q] * spread[p, r]


@nb.njit(cache=True, nogil=True)
def descend(kind, states, gradient, hessian, scale, levels, step):  # type: ignore[no-untyped-def]
    """Each column moves to its best path while all others stay; only strictly better paths are taken."""
    weight, target = _weights(scale), np.empty(scale.size, np.float32)
    fresh, costs = np.empty(scale.size, np.int32), np.empty((scale.size, levels.size), np.float32)
    for p in range(states.shape[0]):
        step[p] = 0.0
        for r in range(scale.size):
            target[r] = levels[states[p, r]] + gradient[p, r] / (hessian[p, p] * scale[r])
        best_path(kind, target, weight, levels, costs, fresh)
        gain = 0.0  # of the loss, over hessian[p, p]
        for r in range(scale.size):
            move = scale[r] * (levels[fresh[r]] - levels[states[p, r]])
            gain += move * (2.0 * gradient[p, r] / hessian[p, p] - move)
        if gain <= 0.0:
            continue
        for r in range(scale.size):
            step[p, r] = scale[r] * (levels[fresh[r]] - levels[states[p, r]])
            states[p, r] = fresh[r]
        for q in range(p, states.shape[0]):
            for r in range(scale.size):
                gradient[q, r] -= hessian[p, q] * step[p, r]


@nb.njit(cache=True, nogil=True)
def _weights(scale: np.ndarray) -> np.ndarray:
    """What an error of the levels weighs in every row, relative to the mean."""
    squares = scale.astype(np.float64) ** 2
    return (squares / squares.mean()).astype(np.float32)
