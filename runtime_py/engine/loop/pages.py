"""Drivers of attention over some pages of the cache, for the tokens of one text and for single tokens of several."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import attend_item
from runtime_py.engine.kernels.attention.pages import choose_pages, put_page_mean
from runtime_py.engine.kernels.attention.sparse_attend import sparse_attend_item
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.layout.attention import PAGE, ROWS
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.records.call import CACHES, CAPACITY, PAST
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64


@nb.njit(cache=True, inline="always")
def _mean(s, keys, capacity, head, page):
    block = keys + s.key_item * s.key_block * (head * (capacity // 16) + page)
    put_page_mean(block, s.key_item, s.head_dim)


def page_means(kind, machine):
    """Driver of a PageMeans: work items are a head's pages that the call has filled."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        begin = past // PAGE
        items = ((past + tokens) // PAGE - begin) * s.kv_heads
        item = fetch_add(counter, 1) if items > 0 else items
        while item < items:
            _mean(s, s.keys, s.capacity, item % s.kv_heads, begin + item // s.kv_heads)
            item = fetch_add(counter, 1)

    return run


def page_means_apart(kind, machine):
    """The same for single tokens of several texts. Of a text with several tokens the last to fill a page writes it."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        item = fetch_add(counter, 1)
        while item < tokens * s.kv_heads:
            text = c.texts + c.stride * (item // s.kv_heads)
            position = get_i64(text + 8 * PAST)
            if position % PAGE == PAGE - 1:
                keys, capacity = get_i64(text + 8 * (CACHES + 2 * layer)), get_i64(text + 8 * CAPACITY)
                _mean(s, keys, capacity, item % s.kv_heads, position // PAGE)
            item = fetch_add(counter, 1)

    return run


@nb.njit(cache=True, inline="always")
def _choose(s, token, head, keys, capacity, position, thread, scratch):
    repeat = s.heads // s.kv_heads
    query = s.query + 4 * (token * s.query_stride + head * repeat * s.head_dim)
    own_keys = keys + s.key_item * s.key_block * head * (capacity // 16)
    lines = s.scores + 4 * 8 * s.longest * thread
    choose_pages(
        query, repeat, s.head_dim, s.scale, own_keys, s.key_item, s.key_block, position, s.pages, s.first, s.recent,
        lines, 4 * s.longest, s.chosen + 4 * (token * s.kv_heads + head) * (1 + s.pages), scratch,
    )  # fmt: skip


def choose(kind, machine):
    """Driver of a ChoosePages: work items are a head of a token."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        items = tokens * s.kv_heads if past + tokens > PAGE * s.pages else 0
        item = fetch_add(counter, 1) if items > 0 else items
        while item < items:
            token = item // s.kv_heads
            _choose(s, token, item % s.kv_heads, s.keys, s.capacity, past + token, thread, scratch)
            item = fetch_add(counter, 1)

    return run


def choose_apart(kind, machine):
    """The same for single tokens of several texts."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        item = fetch_add(counter, 1)
        while item < tokens * s.kv_heads:
            token = item // s.kv_heads
            text = c.texts + c.stride * token
            position = get_i64(text + 8 * PAST)
            if position + 1 > PAGE * s.pages:
                keys, capacity = get_i64(text + 8 * (CACHES + 2 * layer)), get_i64(text + 8 * CAPACITY)
                _choose(s, token, item % s.kv_heads, keys, capacity, position, thread, scratch)
            item = fetch_add(counter, 1)

    return run


@nb.njit(cache=True, inline="always")
def _sparse(s, item, token, keys, values, capacity, position, scratch):
    chosen_bytes = 4 * (1 + s.pages)
    sparse_attend_item(
        item, s.query + 4 * token * s.query_stride, keys, values, s.key_item, s.value_item, s.key_block, capacity,
        s.heads, s.kv_heads, s.head_dim, position, s.scale, s.softcap, s.chosen + token * s.kv_heads * chosen_bytes,
        chosen_bytes, s.out + 4 * token * s.out_stride, scratch,
    )  # fmt: skip


@nb.njit(cache=True, inline="always")
def _dense(s, item, token, keys, values, capacity, past, tokens, scratch):
    attend_item(
        item, s.query + 4 * token * s.query_stride, s.query_stride, keys, values, s.key_item, s.value_item,
        s.key_block, capacity, s.heads, s.kv_heads, s.head_dim, past, tokens, 0, s.scale, s.softcap, True, 0,
        s.out + 4 * token * s.out_stride, s.out_stride, scratch,
    )  # fmt: skip


def attention(kind, machine):
    """Driver of a SparseAttend: work items are up to ROWS heads of a token; of any tokens where all pages are read."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        repeat = s.heads // s.kv_heads
        item = fetch_add(counter, 1)
        if past + tokens <= PAGE * s.pages:
            while item < s.kv_heads * ((repeat * tokens + ROWS - 1) // ROWS):
                _dense(s, item, 0, s.keys, s.values, s.capacity, past, tokens, scratch)
                item = fetch_add(counter, 1)
        else:
            each = s.kv_heads * ((repeat + ROWS - 1) // ROWS)
            while item < tokens * each:
                token = item // each
                _sparse(s, item % each, token, s.keys, s.values, s.capacity, past + token, scratch)
                item = fetch_add(counter, 1)

    return run


def attention_apart(kind, machine):
    """The same for single tokens of several texts."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        each = s.kv_heads * ((s.heads // s.kv_heads + ROWS - 1) // ROWS)
        item = fetch_add(counter, 1)
        while item < tokens * each:
            token = item // each
            text = c.texts + c.stride * token
            cache, position = text + 8 * (CACHES + 2 * layer), get_i64(text + 8 * PAST)
            keys, values, capacity = get_i64(cache), get_i64(cache + 8), get_i64(text + 8 * CAPACITY)
            if position + 1 <= PAGE * s.pages:
                _dense(s, item % each, token, keys, values, capacity, position, 1, scratch)
            else:
                _sparse(s, item % each, token, keys, values, capacity, position, scratch)
            item = fetch_add(counter, 1)

    return run
