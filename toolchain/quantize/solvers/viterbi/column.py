"""The best path of one column through a trellis: the Viterbi algorithm, in vectors of sixteen states.

States s[r] = (s[r - 1] << bits | code[r]) mod 2**state_bits from s[-1] = 0. States that differ in their oldest bits
only have the same successors, so a row needs one comparison per state. The costs of all rows are kept, and the way
back finds the cheapest predecessor again: that is cheaper than to note it for every state on the way.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from llvmlite import ir

from runtime_py.simd import vectors
from runtime_py.simd.vectors import add, broadcast_float, load_floats, minimum, multiply, splat_float, store_floats

Kind = tuple[tuple[int, ...], tuple[int, ...]]
LANES = 16
_FAR = np.float32(3e38)


def trellis_kind(bits: int, state_bits: int) -> Kind:
    """The sizes of a trellis as a type: tuples of zeros of these lengths, so that each kind is compiled for itself."""
    return (0,) * bits, (0,) * state_bits


def _load_repeated(times: int):  # type: ignore[no-untyped-def]
    """An intrinsic: the floats at an address, each `times` times in a row."""
    stored = ir.VectorType(vectors.FLOAT, LANES // times)
    lanes = [lane // times for lane in range(LANES)]
    return vectors.loader(vectors.Floats, stored, lambda builder, value: vectors.shuffle(builder, value, lanes))


_load_twice, _load_four_times, _load_eight_times = _load_repeated(2), _load_repeated(4), _load_repeated(8)


@nb.njit(cache=True, nogil=True)
def best_path(kind, target, weight, levels, costs, states):  # type: ignore[no-untyped-def]
    """states int32 [R] of least sum weight (target - level[s])^2.

    target, weight float32 [R], levels float32 [2**state_bits]; costs: room for float32 [R, 2**state_bits].
    """
    bits, state_bits = len(kind[0]), len(kind[1])
    ways, low, count = 1 << bits, 1 << (state_bits - bits), 1 << state_bits
    best = np.full(low, _FAR, np.float32)  # cost of the cheapest state by its newest bits
    best[0] = np.float32(0.0)
    if low < LANES:
        _forward(ways, target, weight, levels, best, costs)
    else:
        _forward_in_vectors(bits, target, weight, levels, best, costs)
    state = 0
    for k in range(count):
        if costs[target.size - 1, k] < costs[target.size - 1, state]:
            state = k
    for r in range(target.size - 1, 0, -1):
        states[r] = state
        rest, cheapest = state >> bits, 0
        for i in range(1, ways):
            if costs[r - 1, i * low + rest] < costs[r - 1, cheapest * low + rest]:
                cheapest = i
        state = cheapest * low + rest
    states[0] = state


@nb.njit(cache=True, nogil=True)
def _forward(ways, target, weight, levels, best, costs):  # type: ignore[no-untyped-def]
    """The costs [R, states] row by row, one state after another."""
    low = best.size
    for r in range(target.size):
        for m in range(low):
            for y in range(ways):
                off = target[r] - levels[m * ways + y]
                costs[r, m * ways + y] = best[m] + weight[r] * off * off
        for m in range(low):
            best[m] = costs[r, m]
            for i in range(1, ways):
                best[m] = min(best[m], costs[r, i * low + m])


@nb.njit(cache=True, nogil=True)
def _forward_in_vectors(bits, target, weight, levels, best, costs):  # type: ignore[no-untyped-def]
    """The same, sixteen states at a time; best has as many at least."""
    low, count = best.size, levels.size
    best_at, levels_at = best.ctypes.data, levels.ctypes.data
    for r in range(target.size):
        wanted, heavy = splat_float(target[r]), splat_float(weight[r])
        row = costs.ctypes.data + 4 * r * count
        for at in range(0, 4 * count, 4 * LANES):
            off = vectors.subtract(wanted, load_floats(levels_at + at))
            if bits == 1:
                before = _load_twice(best_at + (at >> 1))
            elif bits == 2:
                before = _load_four_times(best_at + (at >> 2))
            elif bits == 3:
                before = _load_eight_times(best_at + (at >> 3))
            else:
                before = broadcast_float(best_at + (at >> 4))
            store_floats(row + at, add(before, multiply(multiply(heavy, off), off)))
        for at in range(0, 4 * low, 4 * LANES):
            least = load_floats(row + at)
            for i in range(1, 1 << bits):
                least = minimum(load_floats(row + 4 * i * low + at), least)
            store_floats(best_at + at, least)
