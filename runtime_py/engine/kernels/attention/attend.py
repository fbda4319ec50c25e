"""Causal attention over a key-value cache: grouped queries, sliding window, online softmax.

Keys of one head lie as [capacity / 16][head_dim][16 positions], so that 16 scores are one vector and no sum crosses
lanes, with numbers of the page behind each block where attention picks pages (pages.py); values as [capacity][padded
head_dim]. A work item is up to 8 query rows that share one key-value head.

A cached number is the float16 nearest to it, or beyond LIMIT the float32 number itself. A cache holds float16 numbers
(HALF_ITEM bytes each) until one beyond LIMIT comes, which sets `overflow`; then the same numbers as float32
(FLOAT_ITEM). So what is cached, and every result, depends on the tokens alone, not on how it is stored.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.attention.products import block_scores, blocks_at_once, mix_values, rows_computed
from runtime_py.engine.kernels.elementwise import exponential, hyperbolic_tangent
from runtime_py.engine.layout.attention import KEYS, ROWS
from runtime_py.simd.vectors import (
    add,
    divide,
    first_lanes,
    get_f32,
    load_floats,
    max_floats,
    maximum,
    multiply,
    prefetch,
    put_f32,
    splat_float,
    store_floats,
    store_some,
    subtract,
    sum_floats,
    zero_floats,
)

LIMIT = np.float32(65504.0)  # the largest float16
HIDDEN = np.finfo(np.float32).min
_F = np.float32
_NEAR = 2  # blocks of 16 keys, at least, that are asked for before they are read


@nb.njit(cache=True, inline="always")
def _ask(at, count):
    for line in range(0, count, 64):
        prefetch(at + line)


@nb.njit(cache=True)
def begin_row(source, head_dim, scale, query, rows, width, total, top, weight):
    """A row's query, times the scale, and what its softmax begins with: no values, no largest score, no weight.

    query: where its first number goes; the next follow behind those of `rows` rows.
    """
    for d in range(head_dim):
        put_f32(query + 4 * rows * d, get_f32(source + 4 * d) * scale)
    for d in range(0, width, 16):
        store_floats(total + 4 * d, zero_floats())
    put_f32(top, HIDDEN)
    put_f32(weight, _F(0.0))


@nb.njit(cache=True)
def limit_scores(scores, begin, count, cap):
    """scores = cap * tanh(scores / cap), from `begin` on, a multiple of 16."""
    inverse = splat_float(_F(1.0) / cap)
    for k in range(begin, count, 16):
        s = hyperbolic_tangent(multiply(load_floats(scores + 4 * k), inverse))
        store_floats(scores + 4 * k, multiply(s, splat_float(cap)))


@nb.njit(cache=True)
def soften(scores, begin, count, low, high, top, width, totals):
    """Online softmax of one row: scores of keys low..high - 1 become weights, others zero; (new top, factor, sum).

    begin: a multiple of 16, not above low; the keys before it are not looked at.
    """
    best = splat_float(HIDDEN)
    for k in range(begin, count, 16):
        s = first_lanes(load_floats(scores + 4 * k), high - k, splat_float(HIDDEN))
        if k < low:
            s = first_lanes(splat_float(HIDDEN), low - k, s)
        store_floats(scores + 4 * k, s)
        best = maximum(best, s)
    new_top = max(top, max_floats(best))
    shift, total = splat_float(new_top), zero_floats()
    for k in range(begin, count, 16):
        weight = exponential(subtract(load_floats(scores + 4 * k), shift))
        weight = first_lanes(weight, high - k, zero_floats())
        if k < low:
            weight = first_lanes(zero_floats(), low - k, weight)
        store_floats(scores + 4 * k, weight)
        total = add(total, weight)
    factor = exponential(splat_float(top - new_top))
    for d in range(0, width, 16):
        store_floats(totals + 4 * d, multiply(load_floats(totals + 4 * d), factor))
    return new_top, max_floats(factor), sum_floats(total)


@nb.njit(cache=True)
def attend_item(
    item,
    query,
    query_stride,
    keys,
    values,
    key_item,
    value_item,
    key_block,
    capacity,
    heads,
    kv_heads,
    head_dim,
    past,
    tokens,
    window,
    scale,
    cap,
    causal,
    sinks,
    out,
    out_stride,
    scratch,
):
    """Rows of work item `item`: tokens x heads of one key-value head, 8 at a time.

    query, out: float32 [tokens, stride]; keys, values: the layer's cache, with the bytes of a number in each;
    key_block: numbers from 16 keys of a head to the next 16; window: keys a query may see, its own the last, and
    without causal as many on the other side, 0 for all; cap: soft cap on the scores, 0 for none; causal: whether a
    query sees no key behind its own; sinks: address of a score for each head that takes part in the softmax and no
    more, or 0.
    """
    repeat, width = heads // kv_heads, (head_dim + 15) // 16 * 16
    tiles = (repeat * tokens + ROWS - 1) // ROWS
    group, first = item // tiles, item % tiles * ROWS
    rows = min(ROWS, repeat * tokens - first)
    queries, scores = scratch, scratch + 4 * ROWS * head_dim
    totals = scores + 4 * ROWS * KEYS
    tops, sums = totals + 4 * ROWS * width, totals + 4 * ROWS * width + 64
    computed = rows_computed(rows)
    for r in range(computed):
        token, head = (first + min(r, rows - 1)) // repeat, group * repeat + (first + min(r, rows - 1)) % repeat
        source = query + 4 * (token * query_stride + head * head_dim)
        begin_row(
            source, head_dim, scale, queries + 4 * r, computed, width, totals + 4 * r * width, tops + 4 * r,
            sums + 4 * r,
        )  # fmt: skip
    together = blocks_at_once(rows)
    ahead = max(together, _NEAR)
    ahead_of_query = 1 if causal else (window if window > 0 else tokens)  # keys from its own on
    stop = min(past + (first + rows - 1) // repeat + ahead_of_query, past + tokens)
    seen = max(past + first // repeat + 1 - window, 0) if window > 0 else 0  # the first key that any row sees
    key_head = keys + key_item * group * (capacity // 16) * key_block
    value_head = values + value_item * group * capacity * width
    for block in range(seen // KEYS * KEYS, stop, KEYS):
        count = min(KEYS, stop - block)
        begin = max(seen - block, 0) // 16 * 16
        for first_key in range(begin, count, 16 * together):
            blocks = min(together, (count - first_key + 15) // 16)
            for k in range(block + first_key, block + first_key + 16 * blocks, 16):
                _ask(value_head + value_item * k * width, 16 * value_item * width)  # for the end of the round
                if k + 16 * ahead < stop:
                    _ask(key_head + key_item * (k // 16 + ahead) * key_block, 16 * key_item * width)
            some_keys = key_head + key_item * ((block + first_key) // 16) * key_block
            block_scores(
                rows, key_item, some_keys, key_item * key_block, blocks, head_dim, queries, scores + 4 * first_key
            )  # fmt: skip
        for r in range(rows):
            position = past + (first + r) // repeat
            low = max(position + 1 - window - block, 0) if window > 0 else 0
            high = min(position + ahead_of_query - block, count)
            if cap > 0:
                limit_scores(scores + 4 * r * KEYS, begin, count, cap)
            top, factor, total = soften(
                scores + 4 * r * KEYS, begin, count, low, high, get_f32(tops + 4 * r), width, totals + 4 * r * width
            )
            put_f32(tops + 4 * r, top)
            put_f32(sums + 4 * r, get_f32(sums + 4 * r) * factor + total)
        mix_values(
            rows, value_item, value_head + value_item * (block + begin) * width, width, count - begin,
            scores + 4 * begin, totals,
        )  # fmt: skip
    for r in range(rows):
        token, head = (first + r) // repeat, group * repeat + (first + r) % repeat
        target = out + 4 * (token * out_stride + head * head_dim)
        total = splat_float(get_f32(sums + 4 * r))
        if sinks != 0:
            beyond = get_f32(sinks + 4 * head) - get_f32(tops + 4 * r)
            total = add(total, exponential(splat_float(beyond)))
        for d in range(0, head_dim, 16):
            value = divide(load_floats(totals + 4 * (r * width + d)), total)
            store_some(target + 4 * d, value, head_dim - d)
