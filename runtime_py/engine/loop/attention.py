"""Drivers of attention, and of KV append where threads share out heads."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention import attend, integer_attend, razor_attend
from runtime_py.engine.kernels.attention.integer_append import integer_append_head
from runtime_py.engine.kernels.attention.razor_kv_append import append_head
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.layout import razor
from runtime_py.engine.layout.attention import ROWS
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.steps.attention import Attend, RazorAttend
from runtime_py.engine.steps.integer_attention import IntegerAttend
from runtime_py.simd.atomics import fetch_add

assert ROWS == razor.ROWS


def _plain_item(s, isa, item, past, tokens, thread, scratch):
    attend.attend_item(
        item, s.query, s.query_stride, s.keys, s.values, s.key_item, s.value_item, s.key_block, s.capacity, s.heads,
        s.kv_heads, s.head_dim, past, tokens, s.window, s.scale, s.softcap, s.causal != 0, s.sinks, s.out, s.out_stride,
        scratch,
    )  # fmt: skip


def _razor_item(s, isa, item, past, tokens, thread, scratch):
    scores = s.scores + thread * 4 * ROWS * s.capacity
    razor_attend.razor_attend_item(
        isa, item, s.query, s.query_stride, s.keys, s.values, s.capacity, s.heads, s.kv_heads, s.head_dim, past,
        tokens, s.window, s.scale, s.softcap, s.key_units, s.value_units, s.group, s.out, s.out_stride, scores, scratch,
    )  # fmt: skip


def _integer_item(s, isa, item, past, tokens, thread, scratch):
    integer_attend.integer_attend_item(
        isa, s.bits, item, s.query, s.query_stride, s.keys, s.values, s.capacity, s.heads, s.kv_heads, s.head_dim, past,
        tokens, s.window, s.scale, s.softcap, s.sinks, s.out, s.out_stride, scratch,
    )  # fmt: skip


_item = by_kind({Attend: _plain_item, RazorAttend: _razor_item, IntegerAttend: _integer_item})


def attention(kind, machine):
    """Driver of any attention: work items are up to ROWS query rows that share a key-value head."""
    isa = machine.isa

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        items = s.kv_heads * ((s.heads // s.kv_heads * tokens + ROWS - 1) // ROWS)
        item = fetch_add(counter, 1)
        while item < items:
            _item(s, isa, item, past, tokens, thread, scratch)
            item = fetch_add(counter, 1)

    return run


def razor_append(kind, machine):
    """Driver of a RazorKvAppend: work items are heads, because a byte of the cache holds numbers of two tokens."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        head = fetch_add(counter, 1)
        while head < s.heads + s.kv_heads:
            append_head(
                head, s.query, s.query_stride, s.key, s.key_stride, s.value, s.value_stride, s.cos, s.sin, s.half,
                s.keys, s.values, s.capacity, s.heads, s.head_dim, past, tokens, s.key_units, s.value_units, s.group,
                s.form, scratch,
            )  # fmt: skip
            head = fetch_add(counter, 1)

    return run


@nb.njit(cache=True, inline="always")
def append_integers(s, head, token, position, keys, values, capacity, first, scratch):
    """One head of a token of an IntegerKvAppend into these caches; first: of those with this head and these caches."""
    row = 4 * position * s.half
    integer_append_head(
        head, s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
        s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, keys, values, s.bits, capacity, s.heads,
        s.head_dim, position, first, scratch,
    )  # fmt: skip


def integer_append(kind, machine):
    """Driver of an IntegerKvAppend: work items are heads, because a byte of the cache may hold two tokens."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        head = fetch_add(counter, 1)
        while head < s.heads + s.kv_heads:
            for token in range(tokens):
                append_integers(s, head, token, past + token, s.keys, s.values, s.capacity, token == 0, scratch)
            head = fetch_add(counter, 1)

    return run
