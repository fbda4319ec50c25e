"""Runs the step table for several whole texts at once, each with positions and keys of its own.

Their tokens lie one text behind the other, so that products read each code once for all of them, and no kernel but
attention looks beyond a token. The texts share a cache: each begins at a multiple of 16 positions, and attention is
called for each as for it alone. So a text of two tokens or more gets the same bits as alone; a single token is
multiplied in another order (products.py) and has to come alone.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import ROWS, attend_item
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.loop.adapters import run_adapter_down, run_adapter_up
from runtime_py.engine.loop.blocks import run_blocks, run_norm
from runtime_py.engine.loop.products import FLOAT_ROWS, GROUPED_ROWS, run_product, run_rows
from runtime_py.engine.loop.tokens import one_token, run_tokens
from runtime_py.engine.records.record import reader
from runtime_py.engine.steps import table
from runtime_py.engine.steps.table import ARGUMENTS, STEP
from runtime_py.simd.atomics import barrier, fetch_add
from runtime_py.simd.tile import amx_configure, amx_release
from runtime_py.simd.vectors import get_i64

# A row of the table of texts, int64: its first token, how many it has, and the position where its keys begin.
FIRST, COUNT, BASE, TEXT = range(4)
# A row of the table of tokens, int64: the token's position in its text, and where its key lies.
LOCAL, PLACE, TOKEN = range(3)
KINDS = frozenset(
    {table.EMBED, table.EMBED_DENSE, table.EMBED_GROUPS, table.NORM, table.QUANTIZE, table.MATMUL, table.GROUP_MATMUL,
     table.GROUPED, table.DENSE, table.SPARSE, table.ACTIVATE, table.ADD, table.KV_APPEND, table.ATTEND, table.SCALE,
     table.REORDER, table.ROTATE, table.ADAPTER_DOWN, table.ADAPTER_UP}
)  # fmt: skip

_head = reader(table.Head)
(
    _embed, _embed_dense, _embed_groups, _norm, _quantize, _matmul, _group_matmul, _grouped, _dense, _sparse, _activate,
    _add, _kv_append, _attend, _scale, _reorder, _rotate, _adapter_down, _adapter_up,
) = (
    reader(table.KINDS[kind], ARGUMENTS)
    for kind in (
        table.EMBED, table.EMBED_DENSE, table.EMBED_GROUPS, table.NORM, table.QUANTIZE, table.MATMUL,
        table.GROUP_MATMUL, table.GROUPED, table.DENSE, table.SPARSE, table.ACTIVATE, table.ADD, table.KV_APPEND,
        table.ATTEND, table.SCALE, table.REORDER, table.ROTATE, table.ADAPTER_DOWN, table.ADAPTER_UP,
    )
)  # fmt: skip


@nb.njit(cache=True)
def _run_rotate(s, places, tokens, counter, scratch):
    token = fetch_add(counter, 1)
    while token < tokens:
        local = get_i64(places + 8 * (TOKEN * token + LOCAL))
        one_token(s, local - token, token, scratch)  # which counts positions from the first token of a call
        token = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_append(s, places, tokens, counter):
    token = fetch_add(counter, 1)
    while token < tokens:
        place = places + 8 * TOKEN * token
        row = 4 * get_i64(place + 8 * LOCAL) * s.half
        append_token(
            s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
            s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, s.keys, s.values, s.key_item,
            s.value_item, s.capacity, s.heads, s.kv_heads, s.head_dim, get_i64(place + 8 * PLACE), s.overflow,
        )  # fmt: skip
        token = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_attention(s, texts, count, counter, scratch):
    """Work items are those of one text, for each text."""
    width = (s.head_dim + 15) // 16 * 16
    item, before, text = fetch_add(counter, 1), 0, 0
    while text < count:
        row = texts + 8 * TEXT * text
        tokens = get_i64(row + 8 * COUNT)
        items = s.kv_heads * ((s.heads // s.kv_heads * tokens + ROWS - 1) // ROWS)
        first, base = get_i64(row + 8 * FIRST), get_i64(row + 8 * BASE)
        while item < before + items:
            attend_item(
                item - before, s.query + 4 * first * s.query_stride, s.query_stride,
                s.keys + s.key_item * base * s.head_dim, s.values + s.value_item * base * width, s.key_item,
                s.value_item, s.capacity, s.heads, s.kv_heads, s.head_dim, 0, tokens, s.window, s.scale, s.softcap,
                s.causal != 0, s.sinks, s.out + 4 * first * s.out_stride, s.out_stride, scratch,
            )  # fmt: skip
            item = fetch_add(counter, 1)
        before += items
        text += 1


@nb.njit(cache=True, inline="always")
def _run_rare(operation, isa, offset, step, places, tokens, counter, scratch):
    if operation == table.QUANTIZE:
        run_blocks(_quantize(step), isa, offset, tokens, counter, scratch)
    elif operation == table.GROUPED:
        run_rows(_grouped(step), GROUPED_ROWS, tokens, counter, scratch)
    elif operation == table.DENSE:
        run_rows(_dense(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.SPARSE:
        run_rows(_sparse(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.EMBED:
        run_tokens(_embed(step), 0, tokens, counter, scratch)
    elif operation == table.EMBED_DENSE:
        run_tokens(_embed_dense(step), 0, tokens, counter, scratch)
    elif operation == table.EMBED_GROUPS:
        run_tokens(_embed_groups(step), 0, tokens, counter, scratch)
    elif operation == table.SCALE:
        run_tokens(_scale(step), 0, tokens, counter, scratch)
    elif operation == table.REORDER:
        run_tokens(_reorder(step), 0, tokens, counter, scratch)
    elif operation == table.ADD:
        run_tokens(_add(step), 0, tokens, counter, scratch)
    elif operation == table.ADAPTER_DOWN:
        run_adapter_down(_adapter_down(step), tokens, 0, 0, 0, counter)
    elif operation == table.ADAPTER_UP:
        run_adapter_up(_adapter_up(step), tokens, 0, 0, 0, counter)
    elif operation == table.ROTATE:
        _run_rotate(_rotate(step), places, tokens, counter, scratch)
    else:
        _run_append(_kv_append(step), places, tokens, counter)


@nb.njit(cache=True, nogil=True)
def run_packed(
    isa, widths, offset, tile, config, steps, count, texts, some, places, tokens, counters, gate, thread, threads,
    scratch,
):  # fmt: skip
    """Run all steps, whose kinds are among KINDS, as thread number `thread` of `threads`, for two tokens or more.

    texts: address of int64 [some, TEXT]; places: address of int64 [tokens, TOKEN]. The others: see run_steps.
    """
    if tile[2]:
        amx_configure(config)
    for i in range(count):
        step = steps + 8 * STEP * i
        counter = counters + 8 * i
        head = _head(step)
        operation = head.operation
        if head.barrier != 0:
            barrier(gate, threads)
        if operation == table.MATMUL:
            run_product(_matmul(step), isa, widths, tile, tokens, thread, threads, counter, scratch)
        elif operation == table.GROUP_MATMUL:
            run_product(_group_matmul(step), isa, widths, tile, tokens, thread, threads, counter, scratch)
        elif operation == table.NORM:
            run_norm(_norm(step), isa, offset, 0, tokens, counter, scratch)
        elif operation == table.ACTIVATE:
            run_blocks(_activate(step), isa, offset, tokens, counter, scratch)
        elif operation == table.ATTEND:
            _run_attention(_attend(step), texts, some, counter, scratch)
        else:
            _run_rare(operation, isa, offset, step, places, tokens, counter, scratch)
    barrier(gate, threads)
    if tile[2]:
        amx_release()
