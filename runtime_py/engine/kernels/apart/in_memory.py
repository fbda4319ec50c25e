"""Four rows of weights at a time, in registers while the tokens pass by, whose sums are in memory.

For more tokens than registers hold sums of beside weights (in_registers.py), on most instruction sets for all.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.tails import UNPACKED, tail_weights
from runtime_py.engine.kernels.matvec import high_products
from runtime_py.engine.kernels.paths import begin, enter_row, of_one_path, weights
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.kernels.shared import shared
from runtime_py.engine.layout.products import HIGH_TOKEN, MOST_TOKENS
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.apart import finish_tokens
from runtime_py.simd.codes import table
from runtime_py.simd.digits import times_255
from runtime_py.simd.lowering import dot
from runtime_py.simd.vectors import (
    add_ints,
    broadcast_float,
    fused,
    get_f32,
    get_i64,
    load_bytes,
    load_floats,
    load_ints,
    prefetch,
    put_f32,
    store_floats,
    sum_floats,
    to_floats,
    zero_floats,
    zero_ints,
)

ROWS = 4  # whose weights are in registers at a time
_AHEAD = 4096  # as in matvec.py
_ZEROS = UNPACKED  # where the sums lie that rows begin with, behind what tail_weights unpacks
_STATES = _ZEROS + 64 * ROWS
SCRATCH_BYTES = _STATES + 64 * ROWS * MOST_TOKENS  # with sums of 16 lanes; and one for each column, rounded up to 64


@nb.njit(cache=True, inline="always")
def _add(acc, scale, before, total):
    """total = what is `before` + scale * acc; before, total: addresses of float32 [16]."""
    store_floats(total, fused(to_floats(acc), scale, load_floats(before)))


@nb.njit(cache=True, inline="always")
def _block(isa, start, w, q0, q1, q2, q3):
    """start + products of a block; w: its four parts."""
    return dot(isa, dot(isa, dot(isa, dot(isa, start, w[0], q0), w[1], q1), w[2], q2), w[3], q3)


@nb.njit(cache=True, inline="always")
def _upper(isa, start, w, places, digits):
    """start + products of a block's high digits."""
    return add_ints(start, high_products(isa, w[0], w[1], w[2], w[3], places, digits))


@nb.njit(cache=True, inline="always")
def _next_block(isa, width, entries, at, bits, state):
    """Weights of a block of 256 columns."""
    prefetch(at + _AHEAD)
    if bits > 2:
        prefetch(at + _AHEAD + 64)
    return weights(isa, width, entries, at, state)


@nb.njit(cache=True, inline="always")
def _four_parts(isa, parts, first, a, b, c, d, at):
    """first + products of so many of the four parts of four rows' blocks with the integers at an address."""
    q = load_bytes(at)
    sa, sb, sc, sd = (
        dot(isa, first, a[0], q),
        dot(isa, first, b[0], q),
        dot(isa, first, c[0], q),
        dot(isa, first, d[0], q),
    )
    if parts > 1:
        q = load_bytes(at + 64)
        sa, sb, sc, sd = dot(isa, sa, a[1], q), dot(isa, sb, b[1], q), dot(isa, sc, c[1], q), dot(isa, sd, d[1], q)
        if parts > 2:
            q = load_bytes(at + 128)
            sa, sb, sc, sd = dot(isa, sa, a[2], q), dot(isa, sb, b[2], q), dot(isa, sc, c[2], q), dot(isa, sd, d[2], q)
            if parts > 3:
                q = load_bytes(at + 192)
                sa, sb = dot(isa, sa, a[3], q), dot(isa, sb, b[3], q)
                sc, sd = dot(isa, sc, c[3], q), dot(isa, sd, d[3], q)
    return sa, sb, sc, sd


@nb.njit(cache=True)
def _four_rows(isa, width, m, n, quantized, sums, scales, high, tokens, states, scratch, totals):
    """The totals [tokens, ROWS] of rows n..n + 3."""
    first, second, third, last = (
        table(isa, width, m.book + shared(n, m.book_rows) * m.book_bytes),
        table(isa, width, m.book + shared(n + 1, m.book_rows) * m.book_bytes),
        table(isa, width, m.book + shared(n + 2, m.book_rows) * m.book_bytes),
        table(isa, width, m.book + shared(n + 3, m.book_rows) * m.book_bytes),
    )
    at, line = m.codes + n * m.row_bytes, m.row_bytes
    before, stride = scratch + _ZEROS, nb.int64(0)
    for block in range(m.blocks):
        state, i = states + 256 * block, place(0, block, tokens)
        a = _next_block(isa, width, first, at, m.bits, state)
        b = _next_block(isa, width, second, at + line, m.bits, state)
        c = _next_block(isa, width, third, at + 2 * line, m.bits, state)
        d = _next_block(isa, width, last, at + 3 * line, m.bits, state)
        q, s, scale_at, own, total = quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i, totals
        for _ in range(tokens):
            start, places, scale = load_ints(s), get_i64(own), broadcast_float(scale_at)
            q0, q1, q2, q3 = load_bytes(q), load_bytes(q + 64), load_bytes(q + 128), load_bytes(q + 192)
            if places == 0:
                _add(_block(isa, start, a, q0, q1, q2, q3), scale, before, total)
                _add(_block(isa, start, b, q0, q1, q2, q3), scale, before + 64, total + 64)
                _add(_block(isa, start, c, q0, q1, q2, q3), scale, before + 128, total + 128)
                _add(_block(isa, start, d, q0, q1, q2, q3), scale, before + 192, total + 192)
            else:
                digits = own + HIGH_BYTES
                upper = _upper(isa, start, a, places, digits)
                _add(_block(isa, upper, a, q0, q1, q2, q3), scale, before, total)
                upper = _upper(isa, start, b, places, digits)
                _add(_block(isa, upper, b, q0, q1, q2, q3), scale, before + 64, total + 64)
                upper = _upper(isa, start, c, places, digits)
                _add(_block(isa, upper, c, q0, q1, q2, q3), scale, before + 128, total + 128)
                upper = _upper(isa, start, d, places, digits)
                _add(_block(isa, upper, d, q0, q1, q2, q3), scale, before + 192, total + 192)
            q, s, scale_at, own = q + 256, s + 64, scale_at + 4, own + HIGH_TOKEN
            before, total = before + stride, total + 64 * ROWS
        before, stride = totals, nb.int64(64 * ROWS)
        at += 32 * m.bits
    if m.tail > 0:
        state, i, parts = states + 256 * m.blocks, place(0, m.blocks, tokens), (m.tail + 63) // 64
        a = tail_weights(isa, width, m, first, at, state, scratch)
        b = tail_weights(isa, width, m, second, at + line, state, scratch)
        c = tail_weights(isa, width, m, third, at + 2 * line, state, scratch)
        d = tail_weights(isa, width, m, last, at + 3 * line, state, scratch)
        q, s, scale_at, own, total = quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i, totals
        for _ in range(tokens):
            scale = broadcast_float(scale_at)
            sa, sb, sc, sd = _four_parts(isa, parts, load_ints(s), a, b, c, d, q)
            if get_i64(own) != 0:
                ua, ub, uc, ud = _four_parts(isa, parts, zero_ints(), a, b, c, d, own + HIGH_BYTES)
                sa, sb = add_ints(sa, times_255(ua)), add_ints(sb, times_255(ub))
                sc, sd = add_ints(sc, times_255(uc)), add_ints(sd, times_255(ud))
            _add(sa, scale, before, total)
            _add(sb, scale, before + 64, total + 64)
            _add(sc, scale, before + 128, total + 128)
            _add(sd, scale, before + 192, total + 192)
            q, s, scale_at, own = q + 256, s + 64, scale_at + 4, own + HIGH_TOKEN
            before, total = before + stride, total + 64 * ROWS


@nb.njit(cache=True, inline="always")
def _parts(isa, parts, first, w, at):
    """first + products of so many of the four parts of a block with the integers at an address."""
    acc = dot(isa, first, w[0], load_bytes(at))
    if parts > 1:
        acc = dot(isa, acc, w[1], load_bytes(at + 64))
        if parts > 2:
            acc = dot(isa, acc, w[2], load_bytes(at + 128))
            if parts > 3:
                acc = dot(isa, acc, w[3], load_bytes(at + 192))
    return acc


@nb.njit(cache=True)
def _one_row(isa, width, m, n, quantized, sums, scales, high, tokens, states, scratch, totals):
    """The first of the totals [tokens, ROWS], of row n."""
    entries = table(isa, width, m.book + shared(n, m.book_rows) * m.book_bytes)
    at = m.codes + n * m.row_bytes
    before, stride = scratch + _ZEROS, 0
    for b in range(m.blocks):
        w = _next_block(isa, width, entries, at, m.bits, states + 256 * b)
        for t in range(tokens):
            i = place(t, b, tokens)
            q, start, own = quantized + 256 * i, load_ints(sums + 64 * i), high + HIGH_TOKEN * i
            places = get_i64(own)
            if places != 0:
                start = _upper(isa, start, w, places, own + HIGH_BYTES)
            q0, q1, q2, q3 = load_bytes(q), load_bytes(q + 64), load_bytes(q + 128), load_bytes(q + 192)
            acc, scale = _block(isa, start, w, q0, q1, q2, q3), broadcast_float(scales + 4 * i)
            _add(acc, scale, before + stride * t, totals + 64 * ROWS * t)
        before, stride = totals, 64 * ROWS
        at += 32 * m.bits
    if m.tail > 0:
        w, parts = tail_weights(isa, width, m, entries, at, states + 256 * m.blocks, scratch), (m.tail + 63) // 64
        for t in range(tokens):
            i = place(t, m.blocks, tokens)
            own, scale = high + HIGH_TOKEN * i, broadcast_float(scales + 4 * i)
            acc = _parts(isa, parts, load_ints(sums + 64 * i), w, quantized + 256 * i)
            if get_i64(own) != 0:
                acc = add_ints(acc, times_255(_parts(isa, parts, zero_ints(), w, own + HIGH_BYTES)))
            _add(acc, scale, before + stride * t, totals + 64 * ROWS * t)


@nb.njit(cache=True, inline="always")
def _four(total):
    return load_floats(total), load_floats(total + 64), load_floats(total + 128), load_floats(total + 192)


@nb.njit(cache=True)
def _finish_four(m, n, tokens, totals, out, bias, accumulate):
    """Scale and write the results of ROWS rows, of four tokens at a time where there are so many."""
    factors = (
        get_f32(m.scale + 4 * shared(n, m.scale_rows)), get_f32(m.scale + 4 * shared(n + 1, m.scale_rows)),
        get_f32(m.scale + 4 * shared(n + 2, m.scale_rows)), get_f32(m.scale + 4 * shared(n + 3, m.scale_rows)),
    )  # fmt: skip
    shift = bias + 4 * n if bias != 0 else nb.int64(0)
    t, total, size = 0, totals, 64 * ROWS
    while t < tokens:
        where = out + 4 * (t * m.rows + n)
        if t + 4 <= tokens:
            a, b, c, d = _four(total), _four(total + size), _four(total + 2 * size), _four(total + 3 * size)
            finish_tokens((*a, *b, *c, *d), factors, shift, where, 4 * m.rows, accumulate)
            t, total = t + 4, total + 4 * size
        else:
            finish_tokens(_four(total), factors, shift, where, 4 * m.rows, accumulate)
            t, total = t + 1, total + size


@nb.njit(cache=True, inline="always")
def _finish(m, n, tokens, totals, out, bias, accumulate):
    """Scale and write a row's results."""
    factor = get_f32(m.scale + shared(n, m.scale_rows) * 4)
    for t in range(tokens):
        value, where = sum_floats(load_floats(totals + 64 * ROWS * t)) * factor, out + 4 * (t * m.rows + n)
        if bias != 0:
            value += get_f32(bias + 4 * n)
        if accumulate:
            value += get_f32(where)
        put_f32(where, value)


@nb.njit(cache=True)
def rows_in_memory(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    """See rows.py."""
    m, states = read_matrix(matrix), scratch + _STATES
    totals = states + (m.columns + 63) // 64 * 64
    for r in range(ROWS):
        store_floats(scratch + _ZEROS + 64 * r, zero_floats())
    begin(width, matrix, first, states, scratch)
    n = first
    while n < last:
        enter_row(width, matrix, n, states)
        if n + ROWS <= last and of_one_path(width, m, n, ROWS):
            _four_rows(isa, width, m, n, quantized, sums, scales, high, tokens, states, scratch, totals)
            _finish_four(m, n, tokens, totals, out, bias, accumulate)
            n += ROWS
        else:
            _one_row(isa, width, m, n, quantized, sums, scales, high, tokens, states, scratch, totals)
            _finish(m, n, tokens, totals, out, bias, accumulate)
            n += 1
