"""Best paths through a trellis in Numba: the Viterbi algorithm for one column, and the loops of the solver around it.

A column's states are s[r] = (s[r - 1] << bits | code[r]) mod 2**state_bits from s[-1] = 0
(export/contract/formats/trellis.py), and
serve targets t[r] with weights g[r] at the cost sum g (t - level[s])^2. States that differ in their oldest bits only
have the same successors, so a row needs one comparison per state. Matrices here are transposed, [columns, rows], so
that a column is contiguous. `kind` is a pair of tuples of zeros, `bits` and `state_bits` long: their lengths are part
of the type, so every kind of trellis is compiled for its own sizes, which alone are vectorised well.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from toolchain.system.threads import ordered, pieces

_FAR = np.float32(3e38)
_PIECE = 64  # columns that one thread takes at a time
Kind = tuple[tuple[int, ...], tuple[int, ...]]


def trellis_kind(bits: int, state_bits: int) -> Kind:
    """What the loops below take for the sizes of a trellis."""
    return (0,) * bits, (0,) * state_bits


@nb.njit(cache=True, nogil=True)
def _column(kind, target, weight, levels, states):  # type: ignore[no-untyped-def]
    """Best path of one column."""
    bits, state_bits = len(kind[0]), len(kind[1])
    ways, low, count = 1 << bits, 1 << (state_bits - bits), 1 << state_bits
    rows = target.size
    cost, best = np.full(count, _FAR, np.float32), np.empty(low, np.float32)
    which, chosen = np.empty(count, np.int32), np.empty((rows, low), np.uint8)
    cost[0] = np.float32(0.0)
    for r in range(rows):
        # the cheapest of the `ways` states that differ in their oldest bits only, by halving
        half = ways >> 1
        for i in range(half * low):
            a, b = cost[i], cost[half * low + i]
            other = b < a
            cost[i] = b if other else a
            which[i] = np.int32(half) if other else np.int32(0)
        half >>= 1
        while half:
            for i in range(half * low):
                a, b = cost[i], cost[half * low + i]
                other = b < a
                cost[i] = b if other else a
                which[i] = (which[half * low + i] | np.int32(half)) if other else which[i]
            half >>= 1
        for m in range(low):
            chosen[r, m] = which[m]
            best[m] = cost[m]
        t, g = target[r], weight[r]
        for m in range(low):
            before = best[m]
            for y in range(ways):
                off = t - levels[m * ways + y]
                cost[m * ways + y] = before + g * off * off
    state = 0
    for k in range(count):
        if cost[k] < cost[state]:
            state = k
    for r in range(rows - 1, -1, -1):
        states[r] = state
        rest = state >> bits
        state = int(chosen[r, rest]) * low + rest


@nb.njit(cache=True, nogil=True)
def _columns(kind, targets, weights, levels, states):  # type: ignore[no-untyped-def]
    for j in range(targets.shape[0]):
        _column(kind, targets[j], weights, levels, states[j])


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
    for p in range(work.shape[0]):
        for r in range(scale.size):
            target[r] = work[p, r] / scale[r]
        _column(kind, target, weight, levels, states[p])
        for r in range(scale.size):
            spread[p, r] = (work[p, r] - scale[r] * levels[states[p, r]]) / factor[p, p]
        for q in range(p, work.shape[0]):
            for r in range(scale.size):
                work[q, r] -= factor[p, q] * spread[p, r]


@nb.njit(cache=True, nogil=True)
def descend(kind, states, gradient, hessian, scale, levels, step):  # type: ignore[no-untyped-def]
    """Each column moves to its best path while all others stay; only strictly better paths are taken."""
    weight, target = _weights(scale), np.empty(scale.size, np.float32)
    fresh = np.empty(scale.size, np.int32)
    for p in range(states.shape[0]):
        step[p] = 0.0
        for r in range(scale.size):
            target[r] = levels[states[p, r]] + gradient[p, r] / (hessian[p, p] * scale[r])
        _column(kind, target, weight, levels, fresh)
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
