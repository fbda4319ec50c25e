"""Runs the step table: one compiled function that every thread of the team executes from the first step to the last.

Threads take work items of a step from a shared counter and meet where a step needs what an earlier one wrote. Nothing
here allocates, checks bounds or knows of models.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from numba.extending import overload

from runtime_py.engine.kernels.attention import ROWS, attend_item, remember_token
from runtime_py.engine.kernels.elementwise import (
    activate,
    add_rows,
    dense_row,
    dense_rows,
    layer_norm,
    reorder_row,
    rms_norm,
    scale_row,
    sparse_rows,
)
from runtime_py.engine.kernels.grouped import grouped_row, grouped_rows
from runtime_py.engine.kernels.matmul import matmul_item
from runtime_py.engine.kernels.matrix import CODES, width_number
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_group, quantize_token
from runtime_py.engine.kernels.razor import razor_group_of_tokens, razor_token
from runtime_py.engine.kernels.razor_attention import ROWS as RAZOR_ROWS
from runtime_py.engine.kernels.razor_attention import razor_attend_item, remember_head
from runtime_py.engine.kernels.razor_products import TILE_ROWS, razor_item, razor_rows
from runtime_py.engine.steps.table import (
    ACTIVATE,
    ADD,
    ARGUMENTS,
    ATTEND,
    DENSE,
    EMBED,
    EMBED_DENSE,
    GROUPED,
    LAST,
    LAYER,
    MATMUL,
    MEET,
    NORM,
    QUANTIZE,
    RAZOR,
    RAZOR_ATTEND,
    RAZOR_MATMUL,
    RAZOR_REMEMBER,
    REORDER,
    SCALE,
    SPARSE,
    STEP,
)
from runtime_py.simd.atomics import barrier, fetch_add
from runtime_py.simd.integers import leading
from runtime_py.simd.tile import amx_configure, amx_release
from runtime_py.simd.vectors import get_f32, get_i64, prefetch

# A matrix-vector product is shared out in two parts: most rows in one long run per thread, because memory is fastest
# read in a straight line, and the rest in small items, because threads do not finish together.
_RUN_SHARE = 0.95
_ITEM_BYTES = 65536  # codes that one of the small items reads
_LOOK_AHEAD = 2  # steps in which a coming product is looked for
_APPROACH_BYTES = 32768
_DENSE_ROWS = 64
_GROUPED_ROWS = 32


@nb.njit(cache=True)
def _arg(step, index):
    return get_i64(step + 8 * (ARGUMENTS + index))


def _by_width(kernel: Any) -> Any:
    """kernel(isa, width, ...) as dispatch(isa, widths, number, ...): compiled once for each width of the tuple."""

    def dispatch(isa, widths, number, arguments):
        """Stands for the code that Numba makes below; never called from Python."""

    @overload(dispatch)
    def choose(isa, widths, number, arguments):
        if len(widths) == 1:
            return lambda isa, widths, number, arguments: kernel(isa, widths[0], *arguments)
        first = width_number(widths[0])

        def code(isa, widths, number, arguments):
            if number == first:
                kernel(isa, widths[0], *arguments)
            else:
                dispatch(isa, widths[1:], number, arguments)

        return code

    return dispatch


_matvec = _by_width(matvec_rows)
_matmul = _by_width(matmul_item)
_razor_vector = _by_width(razor_rows)
_razor_matrix = _by_width(razor_item)


@nb.njit(cache=True)
def _run_matmul(isa, widths, tile, step, tokens, thread, threads, counter, scratch):
    matrix, number, q, sums, scales = _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4)
    rows, bias, accumulate, row_bytes = _arg(step, 6), _arg(step, 7), _arg(step, 8) != 0, _arg(step, 9)
    out = _arg(step, 5)
    if tokens == 1:
        size = max(_ITEM_BYTES // row_bytes, 1)
        run = int(_RUN_SHARE * rows / threads)
        first, last = thread * run, (thread + 1) * run
        while first < rows:
            arguments = (matrix, q, sums, scales, first, last, out, bias, accumulate, scratch)
            _matvec(isa, widths, number, arguments)
            first = threads * run + fetch_add(counter, size)
            last = min(first + size, rows)
        return
    item = fetch_add(counter, 1)
    while item * tile[0] < rows:
        _matmul(
            isa, widths, number, (tile, matrix, item, q, sums, scales, tokens, out, bias, accumulate, threads, scratch)
        )
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_razor_matmul(isa, widths, step, tokens, thread, threads, counter, scratch):
    matrix, number, codes, sums, units = _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4)
    out, rows, bias, accumulate, row_bytes = (
        _arg(step, 5),
        _arg(step, 6),
        _arg(step, 7),
        _arg(step, 8) != 0,
        _arg(step, 9),
    )
    shifts, flags, stride, group, places = (
        _arg(step, 10),
        _arg(step, 11),
        _arg(step, 12),
        _arg(step, 13),
        _arg(step, 14),
    )
    if tokens == 1:
        size = max(_ITEM_BYTES // row_bytes, 1)
        run = int(_RUN_SHARE * rows / threads)
        first, last, log_group = thread * run, (thread + 1) * run, leading(nb.int32(group)) - 1
        while first < rows:
            arguments = (
                matrix, first, last, codes, sums, shifts, units, flags, stride, log_group, places, out, bias,
                accumulate, scratch,
            )  # fmt: skip
            _razor_vector(isa, widths, number, arguments)
            first = threads * run + fetch_add(counter, size)
            last = min(first + size, rows)
        return
    item = fetch_add(counter, 1)
    while item * TILE_ROWS < rows:
        arguments = (
            matrix, item, codes, sums, shifts, units, flags, stride, group, tokens, out, bias, accumulate, scratch
        )  # fmt: skip
        _razor_matrix(isa, widths, number, arguments)
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_razor(isa, offset, step, tokens, counter, scratch):
    """Work items are blocks of 256 columns of 16 tokens."""
    source, stride, columns, group = _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3)
    unit, form = get_f32(step + 8 * (ARGUMENTS + 4)), _arg(step, 5)
    codes, sums, shifts, units = _arg(step, 6), _arg(step, 7), _arg(step, 8), _arg(step, 9)
    blocks = (columns + 255) // 256
    item = fetch_add(counter, 1)
    while item < (tokens + 15) // 16 * blocks:
        which, b = item // blocks, item % blocks
        if tokens == 1:
            razor_token(
                isa, offset, source, columns, group, unit, form, b, b + 1, codes, sums, shifts, units, scratch
            )  # fmt: skip
        else:
            razor_group_of_tokens(
                isa, offset, source, stride, columns, group, unit, form, which, tokens, b, b + 1, codes, sums, shifts,
                units, scratch,
            )  # fmt: skip
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_razor_remember(step, past, tokens, counter, scratch):
    heads, kv_heads = _arg(step, 12), _arg(step, 13)
    head = fetch_add(counter, 1)
    while head < heads + kv_heads:
        remember_head(
            head, _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4), _arg(step, 5),
            _arg(step, 6), _arg(step, 7), _arg(step, 8), _arg(step, 9), _arg(step, 10), _arg(step, 11), heads,
            _arg(step, 14), past, tokens, _arg(step, 15), _arg(step, 16), _arg(step, 17), _arg(step, 18), scratch,
        )  # fmt: skip
        head = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_razor_attend(isa, step, past, tokens, thread, counter, scratch):
    heads, kv_heads, capacity = _arg(step, 5), _arg(step, 6), _arg(step, 4)
    scale, cap = get_f32(step + 8 * (ARGUMENTS + 9)), get_f32(step + 8 * (ARGUMENTS + 12))
    items = kv_heads * ((heads // kv_heads * tokens + RAZOR_ROWS - 1) // RAZOR_ROWS)
    scores = _arg(step, 16) + thread * 4 * RAZOR_ROWS * capacity
    item = fetch_add(counter, 1)
    while item < items:
        razor_attend_item(
            isa, item, _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), capacity, heads, kv_heads,
            _arg(step, 7), past, tokens, _arg(step, 8), scale, cap, _arg(step, 13), _arg(step, 14), _arg(step, 15),
            _arg(step, 10), _arg(step, 11), scores, scratch,
        )  # fmt: skip
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _approach(step, left, thread, threads):
    """Ask for the first codes that this thread will read in the next matrix-vector product, while memory is idle."""
    for ahead in range(1, min(left, _LOOK_AHEAD + 1)):
        later = step + 8 * STEP * ahead
        if get_i64(later) == MATMUL or get_i64(later) == RAZOR_MATMUL:
            row_bytes, rows = _arg(later, 9), _arg(later, 6)
            start = get_i64(_arg(later, 0) + 8 * CODES) + thread * int(_RUN_SHARE * rows / threads) * row_bytes
            for line in range(0, min(_APPROACH_BYTES, rows * row_bytes // threads), 64):
                prefetch(start + line)
            return


@nb.njit(cache=True)
def _quantize(isa, offset, source, stride, columns, group, tokens, first, last, quant, sums, scales, scratch):
    if tokens == 1:
        quantize_token(isa, offset, source, columns, first, last, quant, sums, scales)
    else:
        quantize_group(isa, offset, source, stride, columns, group, tokens, first, last, quant, sums, scales, scratch)


@nb.njit(cache=True)
def _run_norm(isa, offset, step, first_token, tokens, counter, scratch):
    kind, source, stride, scale, bias = _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4)
    columns, out, quant, heads = _arg(step, 6), _arg(step, 7), _arg(step, 8), _arg(step, 11)
    epsilon = get_f32(step + 8 * (ARGUMENTS + 5))
    blocks = (columns + 255) // 256
    group = fetch_add(counter, 1)
    while 16 * group < tokens:
        for token in range(16 * group, min(16 * group + 16, tokens)):
            for head in range(heads):
                x = source + 4 * ((first_token + token) * stride + head * columns)
                y = out + 4 * (token * heads + head) * columns
                if kind == LAYER:
                    layer_norm(x, scale, bias, columns, epsilon, y)
                else:
                    rms_norm(x, scale, columns, epsilon, y)
        if quant != 0:
            sums, scales = _arg(step, 9), _arg(step, 10)
            _quantize(isa, offset, out, columns, columns, group, tokens, 0, blocks, quant, sums, scales, scratch)
        group = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_activate(isa, offset, step, tokens, counter, scratch):
    """Work items are blocks of 256 columns of 16 tokens, so that one token still keeps all threads busy."""
    kind, source, stride, gated, gated_stride = (
        _arg(step, 0),
        _arg(step, 1),
        _arg(step, 2),
        _arg(step, 3),
        _arg(step, 4),
    )
    columns, out, quant = _arg(step, 5), _arg(step, 6), _arg(step, 7)
    blocks = (columns + 255) // 256
    item = fetch_add(counter, 1)
    while item < (tokens + 15) // 16 * blocks:
        group, b = item // blocks, item % blocks
        some = min(columns - 256 * b, 256)
        for token in range(16 * group, min(16 * group + 16, tokens)):
            other = gated + 4 * (token * gated_stride + 256 * b) if gated != 0 else 0
            activate(kind, source + 4 * (token * stride + 256 * b), other, some, out + 4 * (token * columns + 256 * b))
        if quant != 0:
            sums, scales = _arg(step, 8), _arg(step, 9)
            _quantize(isa, offset, out, columns, columns, group, tokens, b, b + 1, quant, sums, scales, scratch)
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_quantize(isa, offset, step, tokens, counter, scratch):
    source, stride, columns, quant = _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3)
    sums, scales = _arg(step, 4), _arg(step, 5)
    blocks = (columns + 255) // 256
    item = fetch_add(counter, 1)
    while item < (tokens + 15) // 16 * blocks:
        group, b = item // blocks, item % blocks
        _quantize(isa, offset, source, stride, columns, group, tokens, b, b + 1, quant, sums, scales, scratch)
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_grouped(step, tokens, counter, scratch):
    rows = _arg(step, 6)
    out = _arg(step, 5)
    first = fetch_add(counter, _GROUPED_ROWS)
    while first < rows:
        last = min(first + _GROUPED_ROWS, rows)
        grouped_rows(
            _arg(step, 0), _arg(step, 1), tokens, _arg(step, 2), _arg(step, 3), _arg(step, 4), first, last, out, rows,
            _arg(step, 7), _arg(step, 8) != 0, scratch,
        )  # fmt: skip
        first = fetch_add(counter, _GROUPED_ROWS)


@nb.njit(cache=True)
def _run_dense(step, tokens, counter):
    rows = _arg(step, 6)
    out = _arg(step, 5)
    first = fetch_add(counter, _DENSE_ROWS)
    while first < rows:
        last = min(first + _DENSE_ROWS, rows)
        dense_rows(
            _arg(step, 0), tokens, _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4), first, last, out, rows,
            _arg(step, 7), _arg(step, 8) != 0,
        )  # fmt: skip
        first = fetch_add(counter, _DENSE_ROWS)


@nb.njit(cache=True)
def _run_sparse(step, tokens, counter):
    rows, out = _arg(step, 6), _arg(step, 5)
    first = fetch_add(counter, _DENSE_ROWS)
    while first < rows:
        last = min(first + _DENSE_ROWS, rows)
        sparse_rows(
            _arg(step, 0), tokens, _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 4), first, last, out, rows,
            _arg(step, 7), _arg(step, 8) != 0,
        )  # fmt: skip
        first = fetch_add(counter, _DENSE_ROWS)


@nb.njit(cache=True)
def _run_attend(step, past, tokens, counter, scratch):
    heads, kv_heads = _arg(step, 5), _arg(step, 6)
    scale, cap = get_f32(step + 8 * (ARGUMENTS + 9)), get_f32(step + 8 * (ARGUMENTS + 12))
    items = kv_heads * ((heads // kv_heads * tokens + ROWS - 1) // ROWS)
    item = fetch_add(counter, 1)
    while item < items:
        attend_item(
            item, _arg(step, 0), _arg(step, 1), _arg(step, 2), _arg(step, 3), _arg(step, 14), _arg(step, 15),
            _arg(step, 4), heads, kv_heads, _arg(step, 7), past, tokens, _arg(step, 8), scale, cap,
            _arg(step, 13) != 0, _arg(step, 10), _arg(step, 11), scratch,
        )  # fmt: skip
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _run_per_token(operation, step, past, tokens, counter, scratch):
    """Steps that treat tokens one by one; 16 neighbours are one work item, because they share lines of the cache."""
    token, stop = 0, 0
    while True:
        if token == stop:
            token = 16 * fetch_add(counter, 1)
            stop = min(token + 16, tokens)
            if token >= tokens:
                return
        if operation == EMBED:
            row, to = get_i64(_arg(step, 0) + 8 * token), _arg(step, 5) + 4 * token * _arg(step, 4)
            grouped_row(_arg(step, 1), _arg(step, 2), _arg(step, 3), row, to, scratch)
        elif operation == EMBED_DENSE:
            columns = _arg(step, 3)
            row = get_i64(_arg(step, 0) + 8 * token)
            dense_row(_arg(step, 1), _arg(step, 2), row, columns, _arg(step, 4) + 4 * token * columns)
        elif operation == SCALE:
            columns, factor = _arg(step, 3), get_f32(step + 8 * (ARGUMENTS + 2))
            scale_row(_arg(step, 0) + 4 * token * _arg(step, 1), factor, columns, _arg(step, 4) + 4 * token * columns)
        elif operation == REORDER:
            columns = _arg(step, 3)
            at, to = _arg(step, 0) + 4 * token * _arg(step, 1), _arg(step, 4) + 4 * token * columns
            reorder_row(at, _arg(step, 2), columns, to)
        elif operation == ADD:
            columns = _arg(step, 4)
            a, b = _arg(step, 0) + 4 * token * _arg(step, 1), _arg(step, 2) + 4 * token * _arg(step, 3)
            add_rows(a, b, columns, _arg(step, 5) + 4 * token * columns)
        else:
            half, position = _arg(step, 8), past + token
            remember_token(
                _arg(step, 0) + 4 * token * _arg(step, 1),
                _arg(step, 2) + 4 * token * _arg(step, 3),
                _arg(step, 4) + 4 * token * _arg(step, 5),
                _arg(step, 6) + 4 * position * half, _arg(step, 7) + 4 * position * half, half,
                _arg(step, 9), _arg(step, 10), _arg(step, 15), _arg(step, 16), _arg(step, 11), _arg(step, 12),
                _arg(step, 13), _arg(step, 14), position, _arg(step, 17),
            )  # fmt: skip
        token += 1


@nb.njit(cache=True, nogil=True)
def run_steps(
    isa,
    widths,
    offset,
    tile,
    config,
    steps,
    count,
    tokens,
    past,
    last_only,
    counters,
    meeting,
    thread,
    threads,
    scratch,
):
    """Run all steps as thread number `thread` of `threads`.

    offset: the instruction set's weight offset. tile: (rows, vectors, AMX). config: address of the AMX configuration.
    steps: address of int64 [count, STEP]. counters: address of int64 [count], all zero. meeting: two zeroed int64, 64
    bytes apart. scratch: this thread's own.
    """
    if tile[2]:
        amx_configure(config)
    for i in range(count):
        step = steps + 8 * STEP * i
        counter = counters + 8 * i
        operation = get_i64(step)
        if get_i64(step + 8 * MEET) != 0:
            if tokens == 1 and operation != MATMUL and operation != RAZOR_MATMUL:
                _approach(step, count - i, thread, threads)
            barrier(meeting, threads)
        first, some = 0, tokens
        if last_only and get_i64(step + 8 * LAST) != 0:
            first, some = tokens - 1, 1
        if operation == MATMUL:
            _run_matmul(isa, widths, tile, step, some, thread, threads, counter, scratch)
        elif operation == NORM:
            _run_norm(isa, offset, step, first, some, counter, scratch)
        elif operation == ACTIVATE:
            _run_activate(isa, offset, step, some, counter, scratch)
        elif operation == ATTEND:
            _run_attend(step, past, some, counter, scratch)
        elif operation == QUANTIZE:
            _run_quantize(isa, offset, step, some, counter, scratch)
        elif operation == GROUPED:
            _run_grouped(step, some, counter, scratch)
        elif operation == DENSE:
            _run_dense(step, some, counter)
        elif operation == SPARSE:
            _run_sparse(step, some, counter)
        elif operation == RAZOR_MATMUL:
            _run_razor_matmul(isa, widths, step, some, thread, threads, counter, scratch)
        elif operation == RAZOR:
            _run_razor(isa, offset, step, some, counter, scratch)
        elif operation == RAZOR_REMEMBER:
            _run_razor_remember(step, past, some, counter, scratch)
        elif operation == RAZOR_ATTEND:
            _run_razor_attend(isa, step, past, some, thread, counter, scratch)
        else:
            _run_per_token(operation, step, past, some, counter, scratch)
    barrier(meeting, threads)
    if tile[2]:
        amx_release()
