"""Runs the step table for single tokens of several texts: each at its own position, with the cache of its own text.

What a token gets is what loop.py gives it alone, to the bit: every kernel here treats tokens one by one, but for the
products, which read each code once for all of them (kernels/matvec_apart.py).
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.attend import ROWS as QUERY_ROWS
from runtime_py.engine.kernels.attention.attend import attend_item
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.kernels.elementwise import CLAMPED, activate, clamped_gate, layer_norm, rms_norm
from runtime_py.engine.kernels.matvec_apart import ROWS, matvec_apart_rows, place
from runtime_py.engine.kernels.quantize import HIGH_TOKEN, quantize_token
from runtime_py.engine.loop.adapters import run_adapter_down, run_adapter_up
from runtime_py.engine.loop.dispatch import by_kind, by_width
from runtime_py.engine.loop.integer_attention import run_integer_append_apart, run_integer_attend_apart
from runtime_py.engine.loop.products import FLOAT_ROWS, GROUPED_ROWS, ITEM_BYTES, RUN_SHARE, run_rows
from runtime_py.engine.loop.texts import ADAPTER, CACHES, CAPACITY, PAST
from runtime_py.engine.loop.tokens import one_token
from runtime_py.engine.records.record import reader
from runtime_py.engine.steps import table
from runtime_py.engine.steps.elementwise import LAYER, Activate
from runtime_py.engine.steps.integers import Quantize
from runtime_py.engine.steps.table import ARGUMENTS, STEP
from runtime_py.simd.atomics import barrier, fetch_add
from runtime_py.simd.vectors import get_i64

KINDS = frozenset(
    {table.EMBED, table.EMBED_DENSE, table.EMBED_GROUPS, table.NORM, table.QUANTIZE, table.MATMUL, table.GROUPED,
     table.DENSE, table.SPARSE, table.ACTIVATE, table.ADD, table.KV_APPEND, table.ATTEND, table.SCALE, table.REORDER,
     table.ROTATE, table.ADAPTER_DOWN, table.ADAPTER_UP, table.INTEGER_KV_APPEND, table.INTEGER_ATTEND}
)  # fmt: skip

_matvec = by_width(matvec_apart_rows)
_head = reader(table.Head)
(
    _embed, _embed_dense, _embed_groups, _norm, _quantize, _matmul, _grouped, _dense, _sparse, _activate, _add,
    _kv_append, _attend, _scale, _reorder, _rotate, _adapter_down, _adapter_up,
    _integer_kv_append, _integer_attend,
) = (
    reader(table.KINDS[kind], ARGUMENTS)
    for kind in (
        table.EMBED, table.EMBED_DENSE, table.EMBED_GROUPS, table.NORM, table.QUANTIZE, table.MATMUL, table.GROUPED,
        table.DENSE, table.SPARSE, table.ACTIVATE, table.ADD, table.KV_APPEND, table.ATTEND, table.SCALE,
        table.REORDER, table.ROTATE, table.ADAPTER_DOWN, table.ADAPTER_UP, table.INTEGER_KV_APPEND,
        table.INTEGER_ATTEND,
    )
)  # fmt: skip


@nb.njit(cache=True, inline="always")
def _quantize_part(s, isa, offset, source, token, b):
    """Block b of a token; source: address of its row."""
    i = place(token, b) - b  # quantize_token adds b
    quantize_token(
        isa, offset, source, s.columns, b, b + 1, s.quant + 256 * i, s.sums + 64 * i, s.scales + 4 * i,
        s.high + HIGH_TOKEN * i,
    )  # fmt: skip


def _quantize_block(s, isa, offset, token, b):
    _quantize_part(s, isa, offset, s.source + 4 * token * s.stride, token, b)


def _activate_block(s, isa, offset, token, b):
    some = min(s.columns - 256 * b, 256)
    other = s.gated + 4 * (token * s.gated_stride + 256 * b) if s.gated != 0 else 0
    to, source = s.out + 4 * (token * s.columns + 256 * b), s.source + 4 * (token * s.stride + 256 * b)
    if s.kind == CLAMPED:
        clamped_gate(source, other, some, s.alpha, s.limit, to)
    else:
        activate(s.kind, source, other, some, to)
    if s.quant != 0:
        _quantize_part(s, isa, offset, s.out + 4 * token * s.columns, token, b)


_block = by_kind({Quantize: _quantize_block, Activate: _activate_block})


@nb.njit(cache=True)
def _run_blocks(s, isa, offset, tokens, counter):
    """Work items are blocks of 256 columns of all tokens, which are neighbours as integers."""
    b = fetch_add(counter, 1)
    while 256 * b < s.columns:
        for token in range(tokens):
            _block(s, isa, offset, token, b)
        b = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_norm(s, isa, offset, tokens, counter):
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
                _quantize_part(s, isa, offset, s.out + 4 * token * s.columns, token, b)
        token = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_product(s, isa, widths, tokens, thread, threads, counter, scratch):
    """Runs of rows, as for one token (products.py), in whole fours."""
    size = max(ITEM_BYTES // s.row_bytes // ROWS * ROWS, ROWS)
    run = int(RUN_SHARE * s.rows / threads) // ROWS * ROWS
    first, last = thread * run, (thread + 1) * run
    while first < s.rows:
        arguments = (
            s.matrix, s.quant, s.sums, s.scales, s.high, tokens, first, last, s.out, s.bias, s.accumulate != 0, scratch
        )  # fmt: skip
        _matvec(isa, widths, s.width, arguments)
        first = threads * run + fetch_add(counter, size)
        last = min(first + size, s.rows)


@nb.njit(cache=True)
def _run_tokens(s, texts, stride, tokens, counter, scratch):
    token = fetch_add(counter, 1)
    while token < tokens:
        past = get_i64(texts + stride * token + 8 * PAST)
        one_token(s, past - token, token, scratch)  # which counts positions from the first token of a call
        token = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_append(s, texts, stride, layer, tokens, counter):
    token = fetch_add(counter, 1)
    while token < tokens:
        text = texts + stride * token
        position, cache = get_i64(text + 8 * PAST), text + 8 * (CACHES + 2 * layer)
        row = 4 * position * s.half
        append_token(
            s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride,
            s.value + 4 * token * s.value_stride, s.cos + row, s.sin + row, s.half, get_i64(cache), get_i64(cache + 8),
            s.key_item, s.value_item, get_i64(text + 8 * CAPACITY), s.heads, s.kv_heads, s.head_dim, position,
            s.overflow,
        )  # fmt: skip
        token = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_attention(s, texts, stride, layer, tokens, counter, scratch):
    """Work items are those of one token, for each token."""
    each = s.kv_heads * ((s.heads // s.kv_heads + QUERY_ROWS - 1) // QUERY_ROWS)
    item = fetch_add(counter, 1)
    while item < tokens * each:
        token = item // each
        text = texts + stride * token
        cache = text + 8 * (CACHES + 2 * layer)
        attend_item(
            item % each, s.query + 4 * token * s.query_stride, s.query_stride, get_i64(cache), get_i64(cache + 8),
            s.key_item, s.value_item, get_i64(text + 8 * CAPACITY), s.heads, s.kv_heads, s.head_dim,
            get_i64(text + 8 * PAST), 1, s.window, s.scale, s.softcap, s.causal != 0, s.sinks,
            s.out + 4 * token * s.out_stride, s.out_stride, scratch,
        )  # fmt: skip
        item = fetch_add(counter, 1)


@nb.njit(cache=True, inline="always")
def _run_rare(operation, step, texts, stride, tokens, counter, scratch):
    if operation == table.GROUPED:
        run_rows(_grouped(step), GROUPED_ROWS, tokens, counter, scratch)
    elif operation == table.DENSE:
        run_rows(_dense(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.SPARSE:
        run_rows(_sparse(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.EMBED:
        _run_tokens(_embed(step), texts, stride, tokens, counter, scratch)
    elif operation == table.EMBED_DENSE:
        _run_tokens(_embed_dense(step), texts, stride, tokens, counter, scratch)
    elif operation == table.EMBED_GROUPS:
        _run_tokens(_embed_groups(step), texts, stride, tokens, counter, scratch)
    elif operation == table.SCALE:
        _run_tokens(_scale(step), texts, stride, tokens, counter, scratch)
    elif operation == table.REORDER:
        _run_tokens(_reorder(step), texts, stride, tokens, counter, scratch)
    elif operation == table.ROTATE:
        _run_tokens(_rotate(step), texts, stride, tokens, counter, scratch)
    elif operation == table.ADAPTER_DOWN:
        run_adapter_down(_adapter_down(step), tokens, texts, stride, 8 * ADAPTER, counter)
    elif operation == table.ADAPTER_UP:
        run_adapter_up(_adapter_up(step), tokens, texts, stride, 8 * ADAPTER, counter)
    else:
        _run_tokens(_add(step), texts, stride, tokens, counter, scratch)


@nb.njit(cache=True, nogil=True)
def run_apart(
    isa, widths, offset, steps, count, layers, texts, stride, tokens, counters, gate, thread, threads, scratch
):
    """Run all steps, whose kinds are among KINDS, as thread number `thread` of `threads`, for up to 16 tokens.

    layers: address of int64 [count], the number of the attention that a step belongs to. texts: address of the rows of
    the tokens' texts, `stride` bytes apart. The others: see run_steps.
    """
    for i in range(count):
        step = steps + 8 * STEP * i
        counter, layer = counters + 8 * i, get_i64(layers + 8 * i)
        head = _head(step)
        operation = head.operation
        if head.barrier != 0:
            barrier(gate, threads)
        if operation == table.MATMUL:
            _run_product(_matmul(step), isa, widths, tokens, thread, threads, counter, scratch)
        elif operation == table.NORM:
            _run_norm(_norm(step), isa, offset, tokens, counter)
        elif operation == table.ACTIVATE:
            _run_blocks(_activate(step), isa, offset, tokens, counter)
        elif operation == table.QUANTIZE:
            _run_blocks(_quantize(step), isa, offset, tokens, counter)
        elif operation == table.ATTEND:
            _run_attention(_attend(step), texts, stride, layer, tokens, counter, scratch)
        elif operation == table.KV_APPEND:
            _run_append(_kv_append(step), texts, stride, layer, tokens, counter)
        elif operation == table.INTEGER_ATTEND:
            run_integer_attend_apart(_integer_attend(step), isa, texts, stride, layer, tokens, counter, scratch)
        elif operation == table.INTEGER_KV_APPEND:
            run_integer_append_apart(_integer_kv_append(step), texts, stride, layer, tokens, counter, scratch)
        else:
            _run_rare(operation, step, texts, stride, tokens, counter, scratch)
    barrier(gate, threads)
