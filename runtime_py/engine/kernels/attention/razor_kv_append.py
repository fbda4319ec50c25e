"""KV append for a cache of 4-bit razored keys and values; its blocks are described in razor_attend.py."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.elementwise import rotate_head
from runtime_py.engine.kernels.razor import flag_of, form_limit, integers, razored, sixteen
from runtime_py.simd.integers import absolute_ints, or_ints, or_lanes, splat_int, store_low_bytes
from runtime_py.simd.vectors import add_ints, get_f32, get_i32, get_u8, put_i8, put_i32, zero_ints

_I = nb.int32


@nb.njit(cache=True)
def _put_nibble(address, high, value):
    """Replace the low or high half of a byte."""
    old = get_u8(address)
    put_i8(address, _I((old & 15) | (value << 4)) if high else _I((old & 240) | value))


@nb.njit(cache=True)
def _razor_head(source, head_dim, group, unit, form, codes, flags):
    """Codes plus 8 as bytes [head_dim padded to 16] and flags int32 [groups] of one head of one token."""
    limit = form_limit(form)
    for g in range((head_dim + group - 1) // group):
        stop = min((g + 1) * group, head_dim)
        ored = zero_ints()
        for k in range(g * group, stop, 16):
            ored = or_ints(ored, absolute_ints(integers(sixteen(source, head_dim, k), unit, limit)))
        flag = flag_of(or_lanes(ored), form)
        put_i32(flags + 4 * g, _I(flag))
        for k in range(g * group, stop, 16):
            q = integers(sixteen(source, head_dim, k), unit, limit)
            store_low_bytes(codes + k, add_ints(razored(q, flag, form), splat_int(_I(8))))


@nb.njit(cache=True)
def razor_key(source, head_dim, group, unit, form, block, position, scratch):
    """One key into its block of 16 positions; scratch: head_dim + 16 bytes of codes, then the flags."""
    wide, groups = (head_dim + 15) // 16 * 16, (head_dim + group - 1) // group
    p, eights = position % 16, (head_dim + 7) // 8
    _razor_head(source, head_dim, group, unit, form, scratch, scratch + wide)
    for j in range(eights):
        for i in range(4):
            low, high = get_u8(scratch + 8 * j + i), get_u8(scratch + 8 * j + 4 + i)
            put_i8(block + 64 * j + 4 * p + i, _I(low | (high << 4)))
    for g in range(groups):
        _put_nibble(block + 64 * eights + 8 * g + p // 2, p % 2 == 1, get_i32(scratch + wide + 4 * g))


@nb.njit(cache=True)
def razor_value(source, head_dim, group, unit, form, block, position, scratch):
    """One value row into its block of 16 positions; scratch as for razor_key."""
    wide, groups = (head_dim + 15) // 16 * 16, (head_dim + group - 1) // group
    p, chunks = position % 16, (head_dim + 15) // 16
    _razor_head(source, head_dim, group, unit, form, scratch, scratch + wide)
    half, high, i = p // 8, (p % 8) // 4 == 1, p % 4
    for d in range(wide):
        at = block + 128 * (d // 16) + 64 * half + 4 * (d % 16) + i
        _put_nibble(at, high, get_u8(scratch + d))
    for g in range(groups):
        _put_nibble(block + 128 * chunks + 8 * g + p // 2, p % 2 == 1, get_i32(scratch + wide + 4 * g))


@nb.njit(cache=True)
def append_head(
    head, query, query_stride, key, key_stride, value, value_stride, cos, sin, half, keys, values, capacity, heads,
    head_dim, past, tokens, key_units, value_units, group, form, scratch,
):  # fmt: skip
    """Rotate one query head of all tokens (head < heads), or rotate and razor one key head and its values."""
    key_bytes = (head_dim + 7) // 8 * 64 + 8 * ((head_dim + group - 1) // group)
    value_bytes = (head_dim + 15) // 16 * 128 + 8 * ((head_dim + group - 1) // group)
    for t in range(tokens):
        position = past + t
        row = 4 * position * half
        if head < heads:
            if half > 0:
                rotate_head(query + 4 * (t * query_stride + head * head_dim), cos + row, sin + row, half)
            continue
        which = head - heads
        source = key + 4 * (t * key_stride + which * head_dim)
        if half > 0:
            rotate_head(source, cos + row, sin + row, half)
        number = which * (capacity // 16) + position // 16
        unit = get_f32(key_units + 4 * which)
        razor_key(source, head_dim, group, unit, form, keys + number * key_bytes, position, scratch)
        source, unit = value + 4 * (t * value_stride + which * head_dim), get_f32(value_units + 4 * which)
        razor_value(source, head_dim, group, unit, form, values + number * value_bytes, position, scratch)
