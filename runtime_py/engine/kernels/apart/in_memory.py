"""Four rows of weights at a time, in registers while the tokens pass by, whose sums are in memory.

For instruction sets whose registers do not hold sums of tokens beside weights.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.tails import STATES, decode_tails
from runtime_py.engine.kernels.matvec import high_products
from runtime_py.engine.kernels.paths import begin, enter_row, of_one_path, weights
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.layout.products import HIGH_TOKEN, MOST_TOKENS
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.codes import table
from runtime_py.simd.digits import times_255
from runtime_py.simd.lowering import dot
from runtime_py.simd.sums import finish_four
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
SCRATCH_BYTES = STATES + 64 * ROWS * MOST_TOKENS  # with sums of 16 lanes; and one for each column, rounded up to 64


@nb.njit(cache=True, inline="always")
def _add_block(isa, start, w0, w1, w2, w3, q0, q1, q2, q3, scale, total):
    """total += scale * (start + products of a block); start int32 [16], total: address of float32 [16]."""
    acc = dot(isa, start, w0, q0)
    acc = dot(isa, acc, w1, q1)
    acc = dot(isa, acc, w2, q2)
    acc = dot(isa, acc, w3, q3)
    store_floats(total, fused(to_floats(acc), scale, load_floats(total)))


@nb.njit(cache=True, inline="always")
def _next_block(isa, width, entries, at, bits, state):
    """Weights of a block of 256 columns."""
    prefetch(at + _AHEAD)
    if bits > 2:
        prefetch(at + _AHEAD + 64)
    return weights(isa, width, entries, at, state)


@nb.njit(cache=True)
def _tails(isa, m, rows, quantized, sums, scales, high, tokens, decoded, totals):
    """Add the products of the last block of some rows, decoded [ROWS, 256], to the totals [tokens, ROWS]."""
    count = (m.tail + 63) // 64
    for t in range(tokens):
        i = place(t, m.blocks, tokens)
        start, scale, own, q = load_ints(sums + 64 * i), broadcast_float(scales + 4 * i), high + HIGH_TOKEN * i, 256 * i
        q += quantized
        outliers = get_i64(own) != 0
        for r in range(rows):
            w, acc, total = decoded + 256 * r, start, totals + 64 * (ROWS * t + r)
            for k in range(count):
                acc = dot(isa, acc, load_bytes(w + 64 * k), load_bytes(q + 64 * k))
            if outliers:
                upper = zero_ints()
                for k in range(count):
                    upper = dot(isa, upper, load_bytes(w + 64 * k), load_bytes(own + HIGH_BYTES + 64 * k))
                acc = add_ints(acc, times_255(upper))
            store_floats(total, fused(to_floats(acc), scale, load_floats(total)))


@nb.njit(cache=True)
def _four_tails(isa, m, quantized, sums, scales, high, tokens, decoded, totals):
    """_tails for ROWS rows of at most 128 columns, whose weights stay in registers."""
    two = m.tail > 64
    a, b, c, d = load_bytes(decoded), load_bytes(decoded + 256), load_bytes(decoded + 512), load_bytes(decoded + 768)
    e, f = load_bytes(decoded + 64), load_bytes(decoded + 320)
    g, h = load_bytes(decoded + 576), load_bytes(decoded + 832)
    i = place(0, m.blocks, tokens)
    q, s, scale_at, own, total = quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i, totals
    for _ in range(tokens):
        start, scale, low = load_ints(s), broadcast_float(scale_at), load_bytes(q)
        sa, sb, sc, sd = (
            dot(isa, start, a, low),
            dot(isa, start, b, low),
            dot(isa, start, c, low),
            dot(isa, start, d, low),
        )
        if two:
            low = load_bytes(q + 64)
            sa, sb, sc, sd = dot(isa, sa, e, low), dot(isa, sb, f, low), dot(isa, sc, g, low), dot(isa, sd, h, low)
        if get_i64(own) != 0:
            none, low = zero_ints(), load_bytes(own + HIGH_BYTES)
            ua, ub, uc, ud = (
                dot(isa, none, a, low),
                dot(isa, none, b, low),
                dot(isa, none, c, low),
                dot(isa, none, d, low),
            )
            if two:
                low = load_bytes(own + HIGH_BYTES + 64)
                ua, ub, uc, ud = dot(isa, ua, e, low), dot(isa, ub, f, low), dot(isa, uc, g, low), dot(isa, ud, h, low)
            sa, sb = add_ints(sa, times_255(ua)), add_ints(sb, times_255(ub))
            sc, sd = add_ints(sc, times_255(uc)), add_ints(sd, times_255(ud))
        store_floats(total, fused(to_floats(sa), scale, load_floats(total)))
        store_floats(total + 64, fused(to_floats(sb), scale, load_floats(total + 64)))
        store_floats(total + 128, fused(to_floats(sc), scale, load_floats(total + 128)))
        store_floats(total + 192, fused(to_floats(sd), scale, load_floats(total + 192)))
        q, s, scale_at, own, total = q + 256, s + 64, scale_at + 4, own + HIGH_TOKEN, total + 64 * ROWS


@nb.njit(cache=True)
def _finish_four(m, n, tokens, totals, out, bias, accumulate, factors):
    """Scale and write the results of ROWS rows. factors: scratch, float32 [ROWS]."""
    for r in range(ROWS):
        put_f32(factors + 4 * r, get_f32(m.scale + (n + r) // m.scale_rows * 4))
    shift = bias + 4 * n if bias != 0 else nb.int64(0)
    for t in range(tokens):
        finish_four(totals + 64 * ROWS * t, factors, shift, out + 4 * (t * m.rows + n), accumulate)


@nb.njit(cache=True, inline="always")
def _finish(m, n, tokens, totals, out, bias, accumulate):
    """Scale and write a row's results."""
    factor = get_f32(m.scale + n // m.scale_rows * 4)
    for t in range(tokens):
        value, where = sum_floats(load_floats(totals + 64 * ROWS * t)) * factor, out + 4 * (t * m.rows + n)
        if bias != 0:
            value += get_f32(bias + 4 * n)
        if accumulate:
            value += get_f32(where)
        put_f32(where, value)


@nb.njit(cache=True)
def _four_rows(isa, width, m, n, quantized, sums, scales, high, tokens, states, totals):
    """Add whole blocks of rows n..n + 3 to the totals [tokens, ROWS]."""
    own_book, next_book, third_book, last_book = (
        m.book + n // m.book_rows * m.book_bytes, m.book + (n + 1) // m.book_rows * m.book_bytes,
        m.book + (n + 2) // m.book_rows * m.book_bytes, m.book + (n + 3) // m.book_rows * m.book_bytes,
    )  # fmt: skip
    at, line = m.codes + n * m.row_bytes, m.row_bytes
    for b in range(m.blocks):
        state = states + 256 * b
        a0, a1, a2, a3 = _next_block(isa, width, table(isa, width, own_book), at, m.bits, state)
        b0, b1, b2, b3 = _next_block(isa, width, table(isa, width, next_book), at + line, m.bits, state)
        c0, c1, c2, c3 = _next_block(isa, width, table(isa, width, third_book), at + 2 * line, m.bits, state)
        d0, d1, d2, d3 = _next_block(isa, width, table(isa, width, last_book), at + 3 * line, m.bits, state)
        i = place(0, b, tokens)
        q, s, scale_at, own, total = quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i, totals
        for _ in range(tokens):
            start, places, scale = load_ints(s), get_i64(own), broadcast_float(scale_at)
            q0, q1, q2, q3 = load_bytes(q), load_bytes(q + 64), load_bytes(q + 128), load_bytes(q + 192)
            if places == 0:
                _add_block(isa, start, a0, a1, a2, a3, q0, q1, q2, q3, scale, total)
                _add_block(isa, start, b0, b1, b2, b3, q0, q1, q2, q3, scale, total + 64)
                _add_block(isa, start, c0, c1, c2, c3, q0, q1, q2, q3, scale, total + 128)
                _add_block(isa, start, d0, d1, d2, d3, q0, q1, q2, q3, scale, total + 192)
            else:
                digits = own + HIGH_BYTES
                upper = add_ints(start, high_products(isa, a0, a1, a2, a3, places, digits))
                _add_block(isa, upper, a0, a1, a2, a3, q0, q1, q2, q3, scale, total)
                upper = add_ints(start, high_products(isa, b0, b1, b2, b3, places, digits))
                _add_block(isa, upper, b0, b1, b2, b3, q0, q1, q2, q3, scale, total + 64)
                upper = add_ints(start, high_products(isa, c0, c1, c2, c3, places, digits))
                _add_block(isa, upper, c0, c1, c2, c3, q0, q1, q2, q3, scale, total + 128)
                upper = add_ints(start, high_products(isa, d0, d1, d2, d3, places, digits))
                _add_block(isa, upper, d0, d1, d2, d3, q0, q1, q2, q3, scale, total + 192)
            q, s, scale_at, own, total = q + 256, s + 64, scale_at + 4, own + HIGH_TOKEN, total + 64 * ROWS
        at += 32 * m.bits


@nb.njit(cache=True)
def _one_row(isa, width, m, n, quantized, sums, scales, high, tokens, states, totals):
    """Add whole blocks of row n to the first of the totals [tokens, ROWS]."""
    entries = table(isa, width, m.book + n // m.book_rows * m.book_bytes)
    at = m.codes + n * m.row_bytes
    for b in range(m.blocks):
        w0, w1, w2, w3 = _next_block(isa, width, entries, at, m.bits, states + 256 * b)
        for t in range(tokens):
            i = place(t, b, tokens)
            q, start, own = quantized + 256 * i, load_ints(sums + 64 * i), high + HIGH_TOKEN * i
            places = get_i64(own)
            if places != 0:
                start = add_ints(start, high_products(isa, w0, w1, w2, w3, places, own + HIGH_BYTES))
            _add_block(
                isa, start, w0, w1, w2, w3, load_bytes(q), load_bytes(q + 64), load_bytes(q + 128),
                load_bytes(q + 192), broadcast_float(scales + 4 * i), totals + 64 * ROWS * t,
            )  # fmt: skip
        at += 32 * m.bits


@nb.njit(cache=True)
def rows_in_memory(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    """See rows.py."""
    m = read_matrix(matrix)
    decoded, states = scratch + 256, scratch + STATES
    totals = states + (m.columns + 63) // 64 * 64
    begin(width, matrix, first, states, scratch)
    n = first
    while n < last:
        enter_row(width, matrix, n, states)
        for i in range(ROWS * tokens):
            store_floats(totals + 64 * i, zero_floats())
        some = ROWS if n + ROWS <= last and of_one_path(width, m, n, ROWS) else 1
        if some == ROWS:
            _four_rows(isa, width, m, n, quantized, sums, scales, high, tokens, states, totals)
        else:
            _one_row(isa, width, m, n, quantized, sums, scales, high, tokens, states, totals)
        if m.tail > 0:
            decode_tails(isa, width, matrix, n, some, states, scratch)
            if some == ROWS and m.tail <= 128:
                _four_tails(isa, m, quantized, sums, scales, high, tokens, decoded, totals)
            else:
                _tails(isa, m, some, quantized, sums, scales, high, tokens, decoded, totals)
        if some == ROWS:
            _finish_four(m, n, tokens, totals, out, bias, accumulate, scratch)
        else:
            _finish(m, n, tokens, totals, out, bias, accumulate)
        n += some
