"""A router's picks for one token, and the weighted sum of what the picked experts give. Addresses in, memory out."""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.elementwise import exponential, logistic
from runtime_py.simd.vectors import (
    add,
    divide,
    first_lanes,
    fused,
    get_f32,
    get_i64,
    load_some,
    multiply,
    put_f32,
    put_i64,
    splat_float,
    store_some,
    subtract,
    sum_floats,
    zero_floats,
)


@nb.njit(cache=True)
def _pick(scores, experts, count, picked):
    """The experts of the `count` largest scores, largest first.

    scores: float32 [experts]. Of equal scores that with the lower number comes first; numbers are always 0 to
    experts - 1, also where scores are not numbers.
    """
    before, place = np.float32(np.inf), -1
    for j in range(count):
        best, found = np.float32(-np.inf), -1
        for i in range(experts):
            value = get_f32(scores + 4 * i)
            behind = value < before or (value == before and i > place)
            if behind and (found < 0 or value > best):
                best, found = value, i
        before, place = best, max(found, 0)
        put_i64(picked + 8 * j, nb.int64(place))


@nb.njit(cache=True)
def _weigh(scores, count, picked, weights):
    for j in range(count):
        put_f32(weights + 4 * j, get_f32(scores + 4 * get_i64(picked + 8 * j)))


@nb.njit(cache=True)
def _finish(weights, count, normalised, floor, scale):
    """Weights divided by their sum and `floor`, where they are normalised, times scale."""
    if normalised != 0:
        own = zero_floats()
        for k in range(0, count, 16):
            some = min(count - k, 16)
            own = add(own, first_lanes(load_some(weights + 4 * k, some), some, zero_floats()))
        part = splat_float(sum_floats(own) + floor)
        for k in range(0, count, 16):
            some = min(count - k, 16)
            store_some(weights + 4 * k, divide(load_some(weights + 4 * k, some), part), some)
    if scale != np.float32(1.0):
        for k in range(0, count, 16):
            some = min(count - k, 16)
            store_some(weights + 4 * k, multiply(load_some(weights + 4 * k, some), splat_float(scale)), some)


@nb.njit(cache=True)
def route(scores, experts, count, normalised, floor, scale, weights, picked):
    """Picks by the scores, and their shares of the softmax over all as weights."""
    _pick(scores, experts, count, picked)
    _weigh(scores, count, picked, weights)
    top, total = splat_float(get_f32(weights)), zero_floats()
    for k in range(0, experts, 16):
        some = min(experts - k, 16)
        powers = exponential(subtract(load_some(scores + 4 * k, some), top))
        total = add(total, first_lanes(powers, some, zero_floats()))
    whole = splat_float(sum_floats(total))
    for k in range(0, count, 16):
        some = min(count - k, 16)
        share = divide(exponential(subtract(load_some(weights + 4 * k, some), top)), whole)
        store_some(weights + 4 * k, share, some)
    _finish(weights, count, normalised, floor, scale)


@nb.njit(cache=True)
def route_by_sigmoid(scores, biases, experts, count, normalised, floor, scale, weights, picked, scratch):
    """Picks by the scores' sigmoids and a bias of each (an address, or 0); weights are the sigmoids without it.

    scratch: route_bytes() of steps/experts.py.
    """
    ranked = scratch + 4 * experts
    for k in range(0, experts, 16):
        some = min(experts - k, 16)
        share = logistic(load_some(scores + 4 * k, some))
        store_some(scratch + 4 * k, share, some)
        if biases != 0:
            store_some(ranked + 4 * k, add(share, load_some(biases + 4 * k, some)), some)
    _pick(ranked if biases != 0 else scratch, experts, count, picked)
    _weigh(scratch, count, picked, weights)
    _finish(weights, count, normalised, floor, scale)


@nb.njit(cache=True)
def scale_by_expert(weights, picked, count, scales):
    """weights[j] *= scales[picked[j]], scales float32 [experts]."""
    for j in range(count):
        put_f32(weights + 4 * j, get_f32(weights + 4 * j) * get_f32(scales + 4 * get_i64(picked + 8 * j)))


@nb.njit(cache=True)
def combine_row(source, weights, count, columns, target):
    """target[i] = sum over j of weights[j] * source[j, i], source float32 [count, columns]."""
    for k in range(0, columns, 16):
        some, total = min(columns - k, 16), zero_floats()
        for j in range(count):
            part = load_some(source + 4 * (j * columns + k), some)
            total = fused(part, splat_float(get_f32(weights + 4 * j)), total)
        store_some(target + 4 * k, total, some)
