"""Drivers of KV append and attention over caches of integer codes, for one text and for tokens of several."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import ROWS
from runtime_py.engine.kernels.attention.integer_append import integer_append_head
from runtime_py.engine.kernels.attention.integer_attend import integer_attend_item
from runtime_py.engine.loop.texts import CACHES, CAPACITY, PAST
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64


@nb.njit(cache=True)
def _append(s, head, token, position, keys, values, capacity, scratch):
    row = 4 * position * s.half
    integer_append_head(
        head, s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
        s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, keys, values, s.bits, capacity, s.heads,
        s.head_dim, position, scratch,
    )  # fmt: skip


@nb.njit(cache=True)
def run_integer_append(s, past, tokens, counter, scratch):
    """An IntegerKvAppend: work items are heads, because a byte of the cache may hold two tokens."""
    head = fetch_add(counter, 1)
    while head < s.heads + s.kv_heads:
        for token in range(tokens):
            _append(s, head, token, past + token, s.keys, s.values, s.capacity, scratch)
        head = fetch_add(counter, 1)


@nb.njit(cache=True)
def run_integer_append_apart(s, texts, stride, layer, tokens, counter, scratch):
    """The same for single tokens of several texts, of which some may be neighbours in one text."""
    head = fetch_add(counter, 1)
    while head < s.heads + s.kv_heads:
        for token in range(tokens):
            text = texts + stride * token
            cache, position = text + 8 * (CACHES + 2 * layer), get_i64(text + 8 * PAST)
            _append(
                s, head, token, position, get_i64(cache), get_i64(cache + 8), get_i64(text + 8 * CAPACITY), scratch
            )  # fmt: skip
        head = fetch_add(counter, 1)


@nb.njit(cache=True)
def run_integer_attend_apart(s, isa, texts, stride, layer, tokens, counter, scratch):
    """An IntegerAttend for single tokens of several texts: work items are those of one token, for each token."""
    each = s.kv_heads * ((s.heads // s.kv_heads + ROWS - 1) // ROWS)
    item = fetch_add(counter, 1)
    while item < tokens * each:
        token = item // each
        text = texts + stride * token
        cache = text + 8 * (CACHES + 2 * layer)
        integer_attend_item(
            isa, s.bits, item % each, s.query + 4 * token * s.query_stride, s.query_stride, get_i64(cache),
            get_i64(cache + 8), get_i64(text + 8 * CAPACITY), s.heads, s.kv_heads, s.head_dim, get_i64(text + 8 * PAST),
            1, s.window, s.scale, s.softcap, s.sinks, s.out + 4 * token * s.out_stride, s.out_stride, scratch,
        )  # fmt: skip
        item = fetch_add(counter, 1)
