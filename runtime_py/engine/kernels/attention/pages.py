"""Pages of cached keys: the mean of each, and which pages a query reads.

Where attention picks pages, a block of 16 keys (attend.py) is a page, and behind it lie head_dim numbers of the
cache's own type: the mean of its keys as they are cached, rounded as these are. So the choice depends on the tokens
alone. Rules: export/contract/operators/sparse_attention.py.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.attention.kv_append import cached_number
from runtime_py.engine.kernels.elementwise import exponential
from runtime_py.engine.layout.attention import HALF_ITEM, PAGE
from runtime_py.simd.vectors import (
    add,
    first_lanes,
    fused,
    get_i32,
    load_floats,
    load_halfs,
    load_some,
    load_some_halfs,
    max_floats,
    maximum,
    multiply,
    prefetch,
    put_f16,
    put_f32,
    put_i32,
    splat_float,
    store_floats,
    subtract,
    sum_floats,
    zero_floats,
)

_F, _I = np.float32, nb.int32
_HIDDEN = np.finfo(np.float32).min
_BINS = 256


@nb.njit(cache=True)
def put_page_mean(block, item, head_dim):
    """Write the mean of 16 keys behind them. block: address; item: bytes of a number."""
    mean = block + 16 * item * head_dim
    for d in range(head_dim):
        if item == HALF_ITEM:
            put_f16(mean + 2 * d, sum_floats(load_halfs(block + 32 * d)) * _F(1.0 / 16.0))
        else:
            put_f32(mean + 4 * d, cached_number(sum_floats(load_floats(block + 64 * d)) * _F(1.0 / 16.0)))


@nb.njit(cache=True, inline="always")
def _numbers(source, item, left):
    """16 cached numbers as floats, zeros behind the `left` first."""
    if item == HALF_ITEM:
        return load_halfs(source) if left >= 16 else load_some_halfs(source, left)
    return load_floats(source) if left >= 16 else load_some(source, left)


@nb.njit(cache=True)
def _products(query, scale, head_dim, keys, item, key_block, first, count, scaled, line):
    """line[i] = the query times scale, times the mean of page first + i. scaled: scratch, float32 [wide]."""
    for d in range(0, head_dim, 16):
        x = multiply(load_some(query + 4 * d, min(head_dim - d, 16)), splat_float(scale))
        store_floats(scaled + 4 * d, x)
    step = item * key_block
    mean = keys + first * step + 16 * item * head_dim
    for i in range(count):
        for ahead in range(0, item * head_dim, 64):
            prefetch(mean + 8 * step + ahead)
        total = zero_floats()
        for d in range(0, head_dim, 16):
            total = fused(_numbers(mean + item * d, item, head_dim - d), load_floats(scaled + 4 * d), total)
        put_f32(line + 4 * i, sum_floats(total))
        mean += step


@nb.njit(cache=True)
def _add_shares(line, count, pooled):
    """pooled += softmax of line."""
    best = splat_float(_HIDDEN)
    for i in range(0, count, 16):
        x = first_lanes(load_floats(line + 4 * i), count - i, splat_float(_HIDDEN))
        best = maximum(best, x)
    top, total = splat_float(max_floats(best)), zero_floats()
    for i in range(0, count, 16):
        power = first_lanes(exponential(subtract(load_floats(line + 4 * i), top)), count - i, zero_floats())
        store_floats(line + 4 * i, power)
        total = add(total, power)
    inverse = splat_float(_F(1.0) / sum_floats(total))
    for i in range(0, count, 16):
        share = multiply(load_floats(line + 4 * i), inverse)
        store_floats(pooled + 4 * i, add(load_floats(pooled + 4 * i), share))


@nb.njit(cache=True)
def _threshold(pooled, count, room, bins):
    """Bits of the room-th largest of `count` numbers that are not negative, and how many as large belong to those."""
    bits, known, wanted = _I(0), _I(0), room
    for shift in (24, 16, 8, 0):
        for b in range(_BINS):
            put_i32(bins + 4 * b, _I(0))
        for i in range(count):
            own = get_i32(pooled + 4 * i) & _I(0x7FFFFFFF)
            if own & known == bits:
                place = bins + 4 * ((own >> _I(shift)) & _I(_BINS - 1))
                put_i32(place, get_i32(place) + _I(1))
        b = _BINS - 1
        while b > 0 and get_i32(bins + 4 * b) < wanted:
            wanted -= get_i32(bins + 4 * b)
            b -= 1
        bits |= _I(b << shift)
        known |= _I((_BINS - 1) << shift)
    return bits, wanted


@nb.njit(cache=True)
def choose_pages(
    query, repeat, head_dim, scale, keys, item, key_block, position, pages, first, recent, lines, line_bytes, chosen,
    scratch,
):  # fmt: skip
    """The pages that a token reads: chosen int32 [1 + pages], how many and then their numbers, ascending.

    query: address of float32 [repeat, head_dim], heads that share these keys. lines: two lines of a number for each
    page. scratch: 4 * head_dim, rounded up to whole vectors, and 4 * 256 bytes.
    """
    own = position // PAGE
    count = 0
    for page in range(min(first, own + 1)):
        put_i32(chosen + 4 * (1 + count), _I(page))
        count += 1
    stop = max(own - recent + 1, first)
    some, room = stop - first, pages - first - recent
    if some <= room:
        for page in range(first, stop):
            put_i32(chosen + 4 * (1 + count), _I(page))
            count += 1
    elif room > 0:
        bins, scaled, pooled = scratch, scratch + 4 * _BINS, lines + line_bytes
        for i in range(0, some, 16):
            store_floats(pooled + 4 * i, zero_floats())
        for r in range(repeat):
            own_query = query + 4 * r * head_dim
            _products(own_query, scale, head_dim, keys, item, key_block, first, some, scaled, lines)
            _add_shares(lines, some, pooled)
        least, alike = _threshold(pooled, some, room, bins)
        for i in range(some):
            bits = get_i32(pooled + 4 * i) & _I(0x7FFFFFFF)
            if bits > least or (bits == least and alike > 0):
                if bits == least:
                    alike -= 1
                put_i32(chosen + 4 * (1 + count), _I(first + i))
                count += 1
    for page in range(max(own - recent + 1, min(first, own + 1)), own + 1):
        put_i32(chosen + 4 * (1 + count), _I(page))
        count += 1
    put_i32(chosen, _I(count))
