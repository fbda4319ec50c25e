"""Causal attention of one token over some pages of the cache: online softmax, as in attend.py.

Rounds are those of dense attention, without the pages that are not read, so that a token that reads all pages gets
the same bits.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.attention.attend import begin_row, limit_scores, soften
from runtime_py.engine.kernels.attention.products import block_scores, mix_values, rows_computed
from runtime_py.engine.layout.attention import KEYS, PAGE, ROWS
from runtime_py.simd.vectors import (
    divide,
    get_f32,
    get_i32,
    load_floats,
    prefetch,
    put_f32,
    splat_float,
    store_some,
)

_F = np.float32
_ROUND = KEYS // PAGE  # pages
_AHEAD = 2  # pages that are asked for before they are read


@nb.njit(cache=True)
def _approach(keys, key_bytes, values, value_bytes, page, step):
    """Ask for the keys and values of a page."""
    for line in range(0, 16 * key_bytes, 64):
        prefetch(keys + page * step + line)
    for line in range(0, 16 * value_bytes, 64):
        prefetch(values + 16 * page * value_bytes + line)


@nb.njit(cache=True)
def sparse_attend_item(
    item, query, keys, values, key_item, value_item, key_block, capacity, heads, kv_heads, head_dim, position, scale,
    cap, chosen, chosen_bytes, out, scratch,
):  # fmt: skip
    """Up to 8 heads of one token that share a key-value head.

    query, out: float32 [heads, head_dim]. chosen: int32 lists of choose_pages (pages.py), chosen_bytes apart, one for
    each key-value head. The other arguments as those of attend_item (attend.py).
    """
    repeat, width = heads // kv_heads, (head_dim + 15) // 16 * 16
    tiles = (repeat + ROWS - 1) // ROWS
    group, first = item // tiles, item % tiles * ROWS
    rows = min(ROWS, repeat - first)
    queries, scores = scratch, scratch + 4 * ROWS * head_dim
    totals = scores + 4 * ROWS * KEYS
    tops, sums = totals + 4 * ROWS * width, totals + 4 * ROWS * width + 64
    computed = rows_computed(rows)
    for r in range(computed):
        source = query + 4 * (group * repeat + first + min(r, rows - 1)) * head_dim
        begin_row(
            source, head_dim, scale, queries + 4 * r, computed, width, totals + 4 * r * width, tops + 4 * r,
            sums + 4 * r,
        )  # fmt: skip
    step = key_item * key_block
    key_head, value_head = keys + group * (capacity // 16) * step, values + value_item * group * capacity * width
    pages = chosen + group * chosen_bytes + 4
    count, own = get_i32(pages - 4), position // PAGE
    for j in range(min(_AHEAD, count)):
        _approach(
            key_head, key_item * head_dim, value_head, value_item * width, nb.int64(get_i32(pages + 4 * j)), step
        )  # fmt: skip
    i = nb.int64(0)
    while i < count:
        span, j = get_i32(pages + 4 * i) // _ROUND, i
        while j < count and get_i32(pages + 4 * j) // _ROUND == span:
            page = nb.int64(get_i32(pages + 4 * j))
            if j + _AHEAD < count:
                later = nb.int64(get_i32(pages + 4 * (j + _AHEAD)))
                _approach(key_head, key_item * head_dim, value_head, value_item * width, later, step)
            block_scores(rows, key_item, key_head + page * step, 0, 1, head_dim, queries, scores + 4 * PAGE * (j - i))
            j += 1
        keys_seen = PAGE * (j - i)
        if get_i32(pages + 4 * (j - 1)) == own:
            keys_seen -= PAGE - 1 - position % PAGE
        for r in range(rows):
            line = scores + 4 * r * KEYS
            if cap > 0:
                limit_scores(line, 0, keys_seen, cap)
            top, factor, total = soften(
                line, 0, keys_seen, 0, keys_seen, get_f32(tops + 4 * r), width, totals + 4 * r * width
            )  # fmt: skip
            put_f32(tops + 4 * r, top)
            put_f32(sums + 4 * r, get_f32(sums + 4 * r) * factor + total)
        k = i
        while k < j:  # neighbours among the pages are one run of values
            start, page = k, nb.int64(get_i32(pages + 4 * k))
            k += 1
            while k < j and get_i32(pages + 4 * k) == page + (k - start):
                k += 1
            some = min(PAGE * (k - start), keys_seen - PAGE * (start - i))
            mix_values(
                rows, value_item, value_head + value_item * PAGE * page * width, width, some,
                scores + 4 * PAGE * (start - i), totals,
            )  # fmt: skip
        i = j
    for r in range(rows):
        target = out + 4 * (group * repeat + first + r) * head_dim
        total = splat_float(get_f32(sums + 4 * r))
        for d in range(0, head_dim, 16):
            store_some(target + 4 * d, divide(load_floats(totals + 4 * (r * width + d)), total), head_dim - d)
