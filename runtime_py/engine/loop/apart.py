"""Drivers of a call for single tokens of several texts: each at its own position, with the cache of its own text.

What a token gets is what plain.py's drivers give it alone, to the bit: every kernel here treats tokens one by one, but
for the products, which read each code once for all of them (kernels/apart/).
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.apart.groups import group_rows_apart
from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.rows import ROWS, matvec_apart_rows
from runtime_py.engine.kernels.attention.attend import attend_item
from runtime_py.engine.kernels.attention.integer_attend import integer_attend_item
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.kernels.elementwise import activate, clamped_gate, layer_norm, rms_norm
from runtime_py.engine.kernels.quantize import quantize_token, token_shares
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.layout.attention import ROWS as QUERY_ROWS
from runtime_py.engine.layout.functions import CLAMPED
from runtime_py.engine.layout.products import HIGH_TOKEN
from runtime_py.engine.loop.adapters import run_adapter_down, run_adapter_up
from runtime_py.engine.loop.attention import append_integers
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.loop.products import ITEM_BYTES, RUN_SHARE
from runtime_py.engine.loop.tokens import one_token
from runtime_py.engine.records.call import ADAPTER, CACHES, CAPACITY, PAST
from runtime_py.engine.steps.elementwise import LAYER, Activate
from runtime_py.engine.steps.integers import Quantize
from runtime_py.engine.steps.products import GroupMatMul, MatMul
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64


@nb.njit(cache=True)
def quantize_part(s, isa, offset, source, token, b, tokens):
    """Make block b of a token of so many integers; source: address of its row."""
    i = place(token, b, tokens) - b  # the kernels add b
    quant, scales, high = s.quant + 256 * i, s.scales + 4 * i, s.high + HIGH_TOKEN * i
    quantize_token(isa, offset, source, s.columns, b, b + 1, quant, s.sums + 64 * i, scales, high)
    if s.group != 0:
        groups = (s.columns + s.group - 1) // s.group
        token_shares(
            isa, offset, s.columns, b, b + 1, s.group, quant, scales, high, s.starts + 256 * i,
            s.shares + 64 * ((groups + 15) // 16) * token,
        )  # fmt: skip


def _quantize_block(s, isa, offset, token, b, tokens):
    quantize_part(s, isa, offset, s.source + 4 * token * s.stride, token, b, tokens)


def _activate_block(s, isa, offset, token, b, tokens):
    some = min(s.columns - 256 * b, 256)
    other = s.gated + 4 * (token * s.gated_stride + 256 * b) if s.gated != 0 else 0
    to, source = s.out + 4 * (token * s.columns + 256 * b), s.source + 4 * (token * s.stride + 256 * b)
    if s.kind == CLAMPED:
        clamped_gate(source, other, some, s.alpha, s.limit, to)
    else:
        activate(s.kind, source, other, some, to)
    if s.quant != 0:
        quantize_part(s, isa, offset, s.out + 4 * token * s.columns, token, b, tokens)


_block = by_kind({Quantize: _quantize_block, Activate: _activate_block})


def norm(kind, machine):
    """Driver of a Norm."""
    isa, offset = machine.isa, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        token = fetch_add(counter, 1)
        while token < tokens:
            for head in range(s.heads):
                x = s.source + 4 * (token * s.stride + head * s.columns)
                y = s.out + 4 * (token * s.heads + head) * s.columns
                if s.kind == LAYER:
                    layer_norm(x, s.scale + 4 * head * s.scale_stride, s.bias, s.columns, s.epsilon, y)
                else:
                    rms_norm(x, s.scale + 4 * head * s.scale_stride, s.columns, s.epsilon, y)
            if s.quant != 0:
                for b in range((s.columns + 255) // 256):
                    quantize_part(s, isa, offset, s.out + 4 * token * s.columns, token, b, tokens)
            token = fetch_add(counter, 1)

    return run


def blocks(kind, machine):
    """Driver of a Quantize or Activate: work items are blocks of 256 columns of all tokens, neighbours as integers."""
    isa, offset = machine.isa, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        b = fetch_add(counter, 1)
        while 256 * b < s.columns:
            for token in range(tokens):
                _block(s, isa, offset, token, b, tokens)
            b = fetch_add(counter, 1)

    return run


def _int8_rows(s, isa, width, tokens, first, last, scratch):
    matvec_apart_rows(
        isa, width,
        s.matrix, s.quant, s.sums, s.scales, s.high, tokens, first, last, s.out, s.bias, s.accumulate != 0, scratch,
    )  # fmt: skip


def _group_rows(s, isa, width, tokens, first, last, scratch):
    group_rows_apart(
        isa, width,
        s.matrix, s.quant, s.scales, s.high, s.starts, s.shares, tokens, first, last, s.out, s.bias,
        s.accumulate != 0, scratch,
    )  # fmt: skip


_rows = by_kind({MatMul: _int8_rows, GroupMatMul: _group_rows})


def product(kind, machine):
    """Driver of a MatMul or GroupMatMul: runs of rows, as for one token (products.py), in whole fours."""
    isa, width = machine.isa, machine.width

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        size = max(ITEM_BYTES // s.row_bytes // ROWS * ROWS, ROWS)
        most = int(RUN_SHARE * s.rows / threads) // ROWS * ROWS
        row, last = thread * most, (thread + 1) * most
        while row < s.rows:
            _rows(s, isa, width, tokens, row, last, scratch)
            row = threads * most + fetch_add(counter, size)
            last = min(row + size, s.rows)

    return run


def by_token(kind, machine):
    """Driver of what treats tokens one by one."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        token = fetch_add(counter, 1)
        while token < tokens:
            past = get_i64(c.texts + c.stride * token + 8 * PAST)
            one_token(s, past - token, token, scratch)  # which counts positions from the first token of a call
            token = fetch_add(counter, 1)

    return run


def append(kind, machine):
    """Driver of a KvAppend."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        token = fetch_add(counter, 1)
        while token < tokens:
            text = c.texts + c.stride * token
            position, cache = get_i64(text + 8 * PAST), text + 8 * (CACHES + 2 * layer)
            row = 4 * position * s.half
            append_token(
                s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
                s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, get_i64(cache),
                get_i64(cache + 8), s.key_item, s.value_item, s.key_block, get_i64(text + 8 * CAPACITY), s.heads,
                s.kv_heads, s.head_dim, position, s.overflow,
            )  # fmt: skip
            token = fetch_add(counter, 1)

    return run


def attention(kind, machine):
    """Driver of an Attend: work items are those of one token, for each token."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        each = s.kv_heads * ((s.heads // s.kv_heads + QUERY_ROWS - 1) // QUERY_ROWS)
        item = fetch_add(counter, 1)
        while item < tokens * each:
            token = item // each
            text = c.texts + c.stride * token
            cache = text + 8 * (CACHES + 2 * layer)
            attend_item(
                item % each, s.query + 4 * token * s.query_stride, s.query_stride, get_i64(cache), get_i64(cache + 8),
                s.key_item, s.value_item, s.key_block, get_i64(text + 8 * CAPACITY), s.heads, s.kv_heads, s.head_dim,
                get_i64(text + 8 * PAST), 1, s.window, s.scale, s.softcap, s.causal != 0, s.sinks,
                s.out + 4 * token * s.out_stride, s.out_stride, scratch,
            )  # fmt: skip
            item = fetch_add(counter, 1)

    return run


def integer_append(kind, machine):
    """Driver of an IntegerKvAppend: heads are shared out, because a byte may hold two tokens of one text."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        head = fetch_add(counter, 1)
        while head < s.heads + s.kv_heads:
            for token in range(tokens):
                text = c.texts + c.stride * token
                position, cache = get_i64(text + 8 * PAST), text + 8 * (CACHES + 2 * layer)
                capacity = get_i64(text + 8 * CAPACITY)
                append_integers(s, head, token, position, get_i64(cache), get_i64(cache + 8), capacity, True, scratch)
            head = fetch_add(counter, 1)

    return run


def integer_attention(kind, machine):
    """Driver of an IntegerAttend: work items are those of one token, for each token."""
    isa = machine.isa

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        layer = get_i64(c.layers + 8 * number)
        each = s.kv_heads * ((s.heads // s.kv_heads + QUERY_ROWS - 1) // QUERY_ROWS)
        item = fetch_add(counter, 1)
        while item < tokens * each:
            token = item // each
            text = c.texts + c.stride * token
            cache = text + 8 * (CACHES + 2 * layer)
            integer_attend_item(
                isa, s.bits, item % each, s.query + 4 * token * s.query_stride, s.query_stride, get_i64(cache),
                get_i64(cache + 8), get_i64(text + 8 * CAPACITY), s.heads, s.kv_heads, s.head_dim,
                get_i64(text + 8 * PAST), 1, s.window, s.scale, s.softcap, s.sinks, s.out + 4 * token * s.out_stride,
                s.out_stride, scratch,
            )  # fmt: skip
            item = fetch_add(counter, 1)

    return run


def adapter_down(kind, machine):
    """Driver of an AdapterDown."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c = read_call(call)
        run_adapter_down(read_step(kind, step), tokens, c.texts, c.stride, 8 * ADAPTER, counter)

    return run


def adapter_up(kind, machine):
    """Driver of an AdapterUp."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c = read_call(call)
        run_adapter_up(read_step(kind, step), tokens, c.texts, c.stride, 8 * ADAPTER, counter)

    return run
