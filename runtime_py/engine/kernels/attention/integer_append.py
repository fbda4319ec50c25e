"""KV append for a cache of integer codes; its blocks are described in integer_cache.py."""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.attention.integer_cache import CENTERED, key_center, rotate_codes
from runtime_py.engine.kernels.elementwise import rotate_head
from runtime_py.simd.integers import maximum_ints, minimum_ints, splat_int
from runtime_py.simd.vectors import (
    absolute,
    add,
    add_ints,
    get_i8,
    get_i32,
    get_u8,
    load_floats,
    load_some,
    max_floats,
    maximum,
    multiply,
    put_f32,
    put_i8,
    put_i32,
    rounded,
    splat_float,
    store_floats,
    store_int8s,
    subtract,
    sum_floats,
    to_floats,
    zero_floats,
)

# Scales that are tried for 4 bits, as parts of the one that cuts nothing off: the least squared error wins.
_NARROWER = (np.float32(1.0), np.float32(0.925), np.float32(0.85))
_SMALLEST = np.float32(1e-30)  # a largest magnitude below which everything is zero
_F, _I = np.float32, nb.int32


@nb.njit(cache=True, inline="always")
def _code(x, inverse):
    """16 codes of 4 bits."""
    return maximum_ints(minimum_ints(rounded(multiply(x, inverse)), splat_int(_I(7))), splat_int(_I(-8)))


@nb.njit(cache=True)
def _error(row, wide, scale):
    """Squared error of codes of 4 bits with this scale."""
    total, inverse, back = zero_floats(), splat_float(_F(1.0) / scale), splat_float(scale)
    for k in range(0, wide, 16):
        x = load_floats(row + 4 * k)
        off = subtract(multiply(to_floats(_code(x, inverse)), back), x)
        total = add(total, multiply(off, off))
    return sum_floats(total)


@nb.njit(cache=True)
def integer_codes(row, wide, bits, target):
    """The codes (int8 [wide], those of 4 bits plus 8) of float32 [wide], and their scale.

    NaN and infinity make a scale of NaN, so that they reach the logits instead of vanishing in a conversion.
    """
    top, none = zero_floats(), zero_floats()
    for k in range(0, wide, 16):
        x = load_floats(row + 4 * k)
        top, none = maximum(top, absolute(x)), add(none, subtract(x, x))
    largest, lost = max_floats(top), sum_floats(none)
    scale = largest * (_F(1.0 / 127.0) if bits == 8 else _F(1.0 / 7.5))
    if not _SMALLEST < largest < _F(np.inf):
        scale = _F(0.0)
    elif bits == 4:
        best, full = _F(np.inf), scale
        for part in _NARROWER:
            error = _error(row, wide, full * part)
            if error < best:
                best, scale = error, full * part
    inverse = splat_float(_F(1.0) / scale if scale > _F(0.0) else _F(0.0))
    for k in range(0, wide, 16):
        x = load_floats(row + 4 * k)
        if bits == 8:
            store_int8s(target + k, rounded(multiply(x, inverse)))
        else:
            store_int8s(target + k, add_ints(_code(x, inverse), splat_int(_I(8))))
    return scale + lost


@nb.njit(cache=True)
def _coded(source, head_dim, bits, block, position, center, scratch):
    """Codes of one head at scratch, its scale into the block; scratch: 5 * wide bytes. center: address or 0."""
    wide = (head_dim + 15) // 16 * 16
    row = scratch + wide
    for d in range(0, wide, 16):
        store_floats(row + 4 * d, load_some(source + 4 * d, min(head_dim - d, 16)))
    rotate_codes(row, head_dim)
    if center != 0:
        for d in range(0, wide, 16):
            store_floats(row + 4 * d, subtract(load_floats(row + 4 * d), load_floats(center + 4 * d)))
    scale = integer_codes(row, wide, bits, scratch)
    put_f32(block + 2 * bits * wide + 4 * (position % 16), scale)


@nb.njit(cache=True)
def integer_key(source, head_dim, bits, block, position, center, scratch):
    """One key of a head, without `center` (address or 0), into its block of 16 positions."""
    wide, p = (head_dim + 15) // 16 * 16, position % 16
    _coded(source, head_dim, bits, block, position, center, scratch)
    if bits == 8:
        for j in range(wide // 4):
            put_i32(block + 64 * j + 4 * p, get_i32(scratch + 4 * j))
    else:
        for j in range(wide // 8):
            low, high = get_i32(scratch + 8 * j), get_i32(scratch + 8 * j + 4)
            put_i32(block + 64 * j + 4 * p, _I(low | (high << 4)))


@nb.njit(cache=True)
def integer_value(source, head_dim, bits, block, position, scratch):
    """One value of a head into its block of 16 positions."""
    wide, p = (head_dim + 15) // 16 * 16, position % 16
    _coded(source, head_dim, bits, block, position, 0, scratch)
    if bits == 8:
        for d in range(wide):
            put_i8(block + 256 * (d // 16) + 64 * (p // 4) + 4 * (d % 16) + p % 4, get_i8(scratch + d))
        return
    for d in range(wide):
        at = block + 128 * (d // 16) + 64 * (p // 8) + 4 * (d % 16) + p % 4
        old, code = get_u8(at), get_u8(scratch + d)
        put_i8(at, _I((old & 15) | (code << 4)) if p % 8 >= 4 else _I((old & 240) | code))


@nb.njit(cache=True)
def integer_append_head(
    head, query, key, value, cos, sin, half, keys, values, bits, capacity, heads, head_dim, position, first, scratch
):
    """Rotate one query head of a token (head < heads), or rotate and store one key head and its values.

    query, key, value: the token's rows. first: whether scratch, 9 * wide bytes, is not yet that of this head and text.
    Threads share out heads, because a byte of the cache holds two tokens.
    """
    if head < heads:
        if half > 0:
            rotate_head(query + 4 * head * head_dim, cos, sin, half)
        return
    which = head - heads
    source = key + 4 * which * head_dim
    if half > 0:
        rotate_head(source, cos, sin, half)
    wide = (head_dim + 15) // 16 * 16
    size, center = 2 * bits * wide + 64, 0
    place = (which * (capacity // 16) + position // 16) * size
    if bits == 4 and position >= CENTERED:
        center = scratch + 5 * wide
        if first or position == CENTERED:
            key_center(keys + which * (capacity // 16) * size, wide, center)
    integer_key(source, head_dim, bits, keys + place, position, center, scratch)
    integer_value(value + 4 * which * head_dim, head_dim, bits, values + place, position, scratch)
