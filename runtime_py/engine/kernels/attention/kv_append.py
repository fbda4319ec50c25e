"""KV append: one token's queries and keys are rotated in place, its keys and values written into the cache.

How the cache lies in memory, and when it holds float16 or float32 numbers: attend.py.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import LIMIT
from runtime_py.engine.kernels.elementwise import rotate_head
from runtime_py.engine.layout.attention import HALF_ITEM
from runtime_py.simd.vectors import (
    absolute,
    get_f32,
    half_precision,
    load_some,
    max_floats,
    maximum,
    put_f16,
    put_f32,
    put_i64,
    store_floats,
    store_halfs,
    zero_floats,
)


@nb.njit(cache=True, inline="always")
def cached_number(x):
    """The number that a cache holds for x."""
    return x if abs(x) > LIMIT else half_precision(x)


@nb.njit(cache=True)
def _exceeds(source, count):
    """Whether one of `count` floats lies beyond LIMIT."""
    top = zero_floats()
    for k in range(0, count, 16):
        top = maximum(top, absolute(load_some(source + 4 * k, min(count - k, 16))))
    return max_floats(top) > LIMIT


@nb.njit(cache=True)
def _store_key(source, head_dim, item, to):
    """One key of a head at its place `to` in a block of 16 positions."""
    for d in range(head_dim):
        if item == HALF_ITEM:
            put_f16(to + 32 * d, get_f32(source + 4 * d))
        else:
            put_f32(to + 64 * d, cached_number(get_f32(source + 4 * d)))


@nb.njit(cache=True)
def _store_value(source, head_dim, item, row):
    """One value of a head, padded with zeros to whole vectors."""
    for d in range(0, head_dim, 16):
        if item == HALF_ITEM:
            store_halfs(row + 2 * d, load_some(source + 4 * d, head_dim - d))
        else:
            store_floats(row + 4 * d, load_some(source + 4 * d, head_dim - d))
            for i in range(d, min(d + 16, head_dim)):
                put_f32(row + 4 * i, cached_number(get_f32(source + 4 * i)))


@nb.njit(cache=True)
def append_token(
    query, key, value, cos, sin, half, keys, values, key_item, value_item, key_block, capacity, heads, kv_heads,
    head_dim, position, overflow,
):  # fmt: skip
    """Rotate one token's queries and keys in place (half > 0) and write its keys and values into the cache.

    key_item, value_item: bytes of a number in each cache. key_block: numbers from 16 keys of a head to the next 16.
    overflow: two int64, of the keys and of the values, set to 1 where a cache of float16 is too narrow; what it holds
    of this token is useless then.
    """
    width = (head_dim + 15) // 16 * 16
    if half > 0:
        for h in range(heads):
            rotate_head(query + 4 * h * head_dim, cos, sin, half)
        for h in range(kv_heads):
            rotate_head(key + 4 * h * head_dim, cos, sin, half)
    if key_item == HALF_ITEM and _exceeds(key, kv_heads * head_dim):
        put_i64(overflow, 1)
    if value_item == HALF_ITEM and _exceeds(value, kv_heads * head_dim):
        put_i64(overflow + 8, 1)
    for h in range(kv_heads):
        place = (h * (capacity // 16) + position // 16) * key_block + position % 16
        _store_key(key + 4 * h * head_dim, head_dim, key_item, keys + key_item * place)
        row = values + value_item * (h * capacity + position) * width
        _store_value(value + 4 * h * head_dim, head_dim, value_item, row)
