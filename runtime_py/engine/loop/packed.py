"""Drivers of a call for several whole texts at once, each with positions and keys of its own.

Their tokens lie one text behind the other, so that products read each code once for all of them, and no kernel but
attention looks beyond a token. The texts share a cache: each begins at a multiple of 16 positions, and attention is
called for each as for it alone. So a text of two tokens or more gets the same bits as alone; a single token is
multiplied in another order (products.py) and has to come alone.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import attend_item
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.layout.attention import ROWS
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.loop.tokens import one_token
from runtime_py.engine.records.call import BASE, COUNT, FIRST, LOCAL, PLACE, TEXT, TOKEN
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64


def rotate(kind, machine):
    """Driver of a Rotate."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, places = read_step(kind, step), read_call(call).places
        token = fetch_add(counter, 1)
        while token < tokens:
            local = get_i64(places + 8 * (TOKEN * token + LOCAL))
            one_token(s, local - token, token, scratch)  # which counts positions from the first token of a call
            token = fetch_add(counter, 1)

    return run


def append(kind, machine):
    """Driver of a KvAppend."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, places = read_step(kind, step), read_call(call).places
        token = fetch_add(counter, 1)
        while token < tokens:
            place = places + 8 * TOKEN * token
            row = 4 * get_i64(place + 8 * LOCAL) * s.half
            append_token(
                s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
                s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, s.keys, s.values, s.key_item,
                s.value_item, s.key_block, s.capacity, s.heads, s.kv_heads, s.head_dim, get_i64(place + 8 * PLACE),
                s.overflow,
            )  # fmt: skip
            token = fetch_add(counter, 1)

    return run


def attention(kind, machine):
    """Driver of an Attend: work items are those of one text, for each text."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        width = (s.head_dim + 15) // 16 * 16
        item, before, text = fetch_add(counter, 1), 0, 0
        while text < c.count:
            row = c.texts + 8 * TEXT * text
            some = get_i64(row + 8 * COUNT)
            items = s.kv_heads * ((s.heads // s.kv_heads * some + ROWS - 1) // ROWS)
            own, base = get_i64(row + 8 * FIRST), get_i64(row + 8 * BASE)
            while item < before + items:
                attend_item(
                    item - before, s.query + 4 * own * s.query_stride, s.query_stride,
                    s.keys + s.key_item * (base // 16) * s.key_block, s.values + s.value_item * base * width,
                    s.key_item, s.value_item, s.key_block, s.capacity, s.heads, s.kv_heads, s.head_dim, 0, some,
                    s.window, s.scale, s.softcap, s.causal != 0, s.sinks, s.out + 4 * own * s.out_stride, s.out_stride,
                    scratch,
                )  # fmt: skip
                item = fetch_add(counter, 1)
            before += items
            text += 1

    return run
