"""The driver of products with picked experts: one token reads the rows of its picks, several share each expert's.

Several tokens: a work item is a run of rows of one expert. The picks of that expert are gathered, 32 at a time, their
inputs made integers, and every tile of rows is decoded once for them. As with other products, what a token gets does
not depend on its neighbours, and one alone may differ from one among several by the order of float32 sums.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.elementwise import add_rows, dense_rows
from runtime_py.engine.kernels.grouped import grouped_rows
from runtime_py.engine.kernels.matmul import tile_of_rows
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_group, quantize_token
from runtime_py.engine.kernels.reading import read_call, read_matrix
from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN, MAX_ROWS
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.steps.experts import FLOAT_ROWS, GATHERED, ExpertDense, ExpertGrouped
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.pages import will_need
from runtime_py.simd.vectors import get_i64, load_some, put_i64, store_some

_ITEM_BYTES = 65536  # codes that a work item of one token reads
_SHARES = 4  # work items for each thread, at least: threads do not finish together


@nb.njit(cache=True)
def _picked(s, pick):
    return min(max(get_i64(s.picked + 8 * pick), 0), s.experts - 1)


@nb.njit(cache=True)
def _is_picked(s, tokens, expert):
    found = False
    for pick in range(tokens * s.count):
        found |= _picked(s, pick) == expert
    return found


@nb.njit(cache=True)
def _ask_for_picks(s, codes, size, tokens):
    """Have all experts read that some tokens go to."""
    for pick in range(tokens * s.count):
        will_need(codes + _picked(s, pick) * size, size, s.page)


@nb.njit(cache=True)
def _ask_ahead(s, codes, size, tokens, item, parts):
    """Before a work item, have experts read from the mapped file that they are in. size: bytes of an expert.

    One token: all that it goes to. Several: while an expert is at work the next one comes.
    """
    if tokens == 1:
        if item == 0:
            _ask_for_picks(s, codes, size, 1)
    elif item % parts == 0:
        expert = item // parts
        for other in range(expert, min(expert + 2, s.experts)):
            if (other > expert or expert == 0) and _is_picked(s, tokens, other):
                will_need(codes + other * size, size, s.page)


@nb.njit(cache=True)
def _one_by_one(s, isa, width, offset, tokens, counter, scratch):
    """Each token as if it were alone. A thread makes the input of its item integers itself, unless it has just done."""
    blocks = (s.columns + 255) // 256
    sums = scratch + (s.columns + 63) // 64 * 64
    scales = sums + 64 * blocks
    high = scales + 64 * blocks
    rest = high + HIGH_TOKEN * blocks
    size = max(_ITEM_BYTES // s.row_bytes, 1)
    parts = (s.rows + size - 1) // size
    known = nb.int64(-1)
    item = fetch_add(counter, 1)
    while item < tokens * s.count * parts:
        if s.page != 0 and item == 0:
            _ask_for_picks(s, read_matrix(s.matrix).codes, s.rows * s.row_bytes, tokens)
        pick = item // parts
        token = pick // s.count
        own = pick if s.apart != 0 else token
        if own != known:
            source = s.source + 4 * (token * s.stride + pick % s.count * s.apart)
            quantize_token(isa, offset, source, s.columns, 0, blocks, scratch, sums, scales, high)
            known = own
        expert = _picked(s, pick)
        first = expert * s.rows + item % parts * size
        last = min(first + size, (expert + 1) * s.rows)
        out = s.out + 4 * (pick - expert) * s.rows  # rows are counted over all experts
        matvec_rows(
            isa, width, s.matrix, scratch, sums, scales, high, first, last, out, s.bias, s.accumulate != 0, rest
        )  # fmt: skip
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def _copy(source, count, target):
    for k in range(0, count, 16):
        some = min(count - k, 16)
        store_some(target + 4 * k, load_some(source + 4 * k, some), some)


@nb.njit(cache=True)
def _gathered(s, isa, width, tile, offset, expert, first, last, picks, count, scratch):
    """Rows first..last - 1 of an expert for `count` picks. scratch: expert_bytes() of steps/experts.py."""
    blocks, wide = (s.columns + 255) // 256, (s.columns + 63) // 64 * 64
    made = scratch
    inputs = made + 4 * GATHERED * MAX_ROWS
    quantized = inputs + 4 * GATHERED * wide
    sums = quantized + GATHERED * wide
    scales = sums + 4 * GATHERED * blocks
    high = scales + 4 * GATHERED * blocks
    rest = high + GATHERED // 16 * HIGH_GROUP * blocks
    for i in range(count):
        pick = get_i64(picks + 8 * i)
        token = pick // s.count
        _copy(s.source + 4 * (token * s.stride + pick % s.count * s.apart), s.columns, inputs + 4 * i * wide)
    for group in range((count + 15) // 16):
        quantize_group(
            isa, offset, inputs, wide, s.columns, group, count, 0, blocks, quantized, sums, scales, high, rest
        )
    for row in range(first, last, tile[0]):
        some = min(last - row, tile[0])
        place = expert * s.rows + row
        tile_of_rows(
            isa, width, tile, s.matrix, place, some, quantized, sums, scales, high, count, made, s.bias, rest
        )  # fmt: skip
        for i in range(count):
            _copy(made + 4 * i * some, some, s.out + 4 * (get_i64(picks + 8 * i) * s.rows + row))


@nb.njit(cache=True)
def _several_tokens(s, isa, width, tile, offset, tokens, threads, counter, scratch):
    parts = max((_SHARES * threads + s.experts - 1) // s.experts, 1)
    size = ((s.rows + parts - 1) // parts + tile[0] - 1) // tile[0] * tile[0]
    parts = (s.rows + size - 1) // size
    item = fetch_add(counter, 1)
    while item < s.experts * parts:
        if s.page != 0:
            _ask_ahead(s, read_matrix(s.matrix).codes, s.rows * s.row_bytes, tokens, item, parts)
        expert, first = item // parts, item % parts * size
        last, found = min(first + size, s.rows), 0
        for pick in range(tokens * s.count):
            if _picked(s, pick) == expert:
                put_i64(scratch + 8 * found, pick)
                found += 1
                if found == GATHERED:
                    _gathered(s, isa, width, tile, offset, expert, first, last, scratch, found, scratch + 8 * GATHERED)
                    found = 0
        if found > 0:
            _gathered(s, isa, width, tile, offset, expert, first, last, scratch, found, scratch + 8 * GATHERED)
        item = fetch_add(counter, 1)


def _grouped_rows(s, source, tokens, stride, first, last, out, out_stride, accumulate, scratch):
    grouped_rows(
        source, stride, tokens, s.matrix, s.groups, s.group_size, first, last, out, out_stride, s.bias, accumulate,
        scratch,
    )  # fmt: skip


def _dense_rows(s, source, tokens, stride, first, last, out, out_stride, accumulate, scratch):
    dense_rows(
        source, tokens, stride, s.weights, s.item_bytes, s.columns, first, last, out, out_stride, s.bias, accumulate
    )  # fmt: skip


def _grouped_expert(s):
    m = read_matrix(s.matrix)
    return m.codes, s.rows * m.row_bytes


def _dense_expert(s):
    return s.weights, s.rows * s.columns * s.item_bytes


_float_rows = by_kind({ExpertGrouped: _grouped_rows, ExpertDense: _dense_rows})
_float_expert = by_kind({ExpertGrouped: _grouped_expert, ExpertDense: _dense_expert})  # where all are, bytes of one


@nb.njit(cache=True)
def _picks_in_floats(s, expert, first, last, picks, count, scratch):
    """Rows first..last - 1 of an expert for `count` picks; scratch: expert_float_bytes() without the picks."""
    made, some, place = scratch, last - first, expert * s.rows
    inputs = made + 4 * GATHERED * FLOAT_ROWS
    rest = inputs + 4 * GATHERED * s.columns
    for i in range(count):
        pick = get_i64(picks + 8 * i)
        token = pick // s.count
        _copy(s.source + 4 * (token * s.stride + pick % s.count * s.apart), s.columns, inputs + 4 * i * s.columns)
    start = made - 4 * (place + first)  # rows are counted over all experts
    _float_rows(s, inputs, count, s.columns, place + first, place + last, start, some, False, rest)
    for i in range(count):
        own, to = made + 4 * i * some, s.out + 4 * (get_i64(picks + 8 * i) * s.rows + first)
        if s.accumulate != 0:
            add_rows(to, own, some, to)
        else:
            _copy(own, some, to)


def expert_product(kind, machine):
    """Driver of an ExpertMatMul. Picks that are no number of an expert are taken as the nearest that is."""
    isa, width, offset = machine.isa, machine.width, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        tile = (c.rows, c.vectors, c.amx != 0)
        if tokens == 1:
            _one_by_one(s, isa, width, offset, tokens, counter, scratch)
        else:
            _several_tokens(s, isa, width, tile, offset, tokens, threads, counter, scratch)

    return run


def expert_product_apart(kind, machine):
    """Driver of an ExpertMatMul for single tokens of several texts, whose sums are those of one token."""
    isa, width, offset = machine.isa, machine.width, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        _one_by_one(read_step(kind, step), isa, width, offset, tokens, counter, scratch)

    return run


def expert_floats(kind, machine):
    """Driver of an ExpertGrouped or ExpertDense: a work item is a run of rows of one expert, for all picks of it."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        parts = (s.rows + FLOAT_ROWS - 1) // FLOAT_ROWS
        item = fetch_add(counter, 1)
        while item < s.experts * parts:
            if s.page != 0:
                codes, size = _float_expert(s)
                _ask_ahead(s, codes, size, tokens, item, parts)
            expert, row, found = item // parts, item % parts * FLOAT_ROWS, 0
            last = min(row + FLOAT_ROWS, s.rows)
            for pick in range(tokens * s.count):
                if _picked(s, pick) == expert:
                    put_i64(scratch + 8 * found, pick)
                    found += 1
                    if found == GATHERED:
                        _picks_in_floats(s, expert, row, last, scratch, found, scratch + 8 * GATHERED)
                        found = 0
            if found > 0:
                _picks_in_floats(s, expert, row, last, scratch, found, scratch + 8 * GATHERED)
            item = fetch_add(counter, 1)

    return run
