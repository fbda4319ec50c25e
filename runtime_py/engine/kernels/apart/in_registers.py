"""Two rows of weights times up to four tokens, whose sums stay in registers from a row's start to its end.

For instruction sets with 32 vector registers of 64 bytes. How many tokens there are is known to the compiler: LLVM
would move sums from register to register where code ends early. More tokens do not pay: looking codes up again for the
next four takes longer than keeping sums in memory (in_memory.py).
"""

from __future__ import annotations

import numba as nb
from numba.extending import overload

from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.tails import UNPACKED, tail_weights
from runtime_py.engine.kernels.paths import begin, enter_row, of_one_path, weights
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.kernels.shared import shared
from runtime_py.engine.layout.products import HIGH_TOKEN
from runtime_py.machine.isa import Tag
from runtime_py.simd.apart import add_tokens, finish_tokens, no_totals
from runtime_py.simd.codes import table
from runtime_py.simd.vectors import get_f32, prefetch

MOST = 4  # tokens
_ONE, _TWO, _THREE, _FOUR = (Tag("count", count) for count in range(1, MOST + 1))
_AHEAD = 4096  # as in matvec.py


@nb.njit(cache=True, inline="always")
def _block(isa, width, entries, at, bits, states):
    """Weights of a block of 256 columns."""
    prefetch(at + _AHEAD)
    if bits > 2:
        prefetch(at + _AHEAD + 64)
    return weights(isa, width, entries, at, states)


@nb.njit(cache=True, inline="always")
def _two_rows(
    isa, width, count, matrix, n, quantized, sums, scales, high, tokens, states, out, shift, accumulate, scratch
):
    """Rows n and n + 1 of `count` tokens (a tag), of `tokens` that lie there."""
    m = read_matrix(matrix)
    first = table(isa, width, m.book + shared(n, m.book_rows) * m.book_bytes)
    second = table(isa, width, m.book + shared(n + 1, m.book_rows) * m.book_bytes)
    at, line = m.codes + n * m.row_bytes, m.row_bytes
    totals = no_totals(_TWO, count)
    for b in range(m.blocks):
        state, i = states + 256 * b, place(0, b, tokens)
        w0, w1, w2, w3 = _block(isa, width, first, at, m.bits, state)
        v0, v1, v2, v3 = _block(isa, width, second, at + line, m.bits, state)
        totals = add_tokens(
            isa, (w0, w1, w2, w3, v0, v1, v2, v3), 4, quantized + 256 * i, sums + 64 * i, scales + 4 * i,
            high + HIGH_TOKEN * i, totals,
        )  # fmt: skip
        at += 32 * m.bits
    if m.tail > 0:
        state, i = states + 256 * m.blocks, place(0, m.blocks, tokens)
        w0, w1, w2, w3 = tail_weights(isa, width, m, first, at, state, scratch)
        v0, v1, v2, v3 = tail_weights(isa, width, m, second, at + line, state, scratch)
        totals = add_tokens(
            isa, (w0, w1, w2, w3, v0, v1, v2, v3), (m.tail + 63) // 64, quantized + 256 * i, sums + 64 * i,
            scales + 4 * i, high + HIGH_TOKEN * i, totals,
        )  # fmt: skip
    factors = get_f32(m.scale + 4 * shared(n, m.scale_rows)), get_f32(m.scale + 4 * shared(n + 1, m.scale_rows))
    finish_tokens(totals, factors, shift, out + 4 * n, 4 * m.rows, accumulate)


@nb.njit(cache=True)
def _one_row(isa, width, matrix, n, quantized, sums, scales, high, tokens, states, out, shift, accumulate, scratch):
    """Row n of the first of the tokens that lie there."""
    m = read_matrix(matrix)
    entries, at = table(isa, width, m.book + shared(n, m.book_rows) * m.book_bytes), m.codes + n * m.row_bytes
    totals = no_totals(_ONE, _ONE)
    for b in range(m.blocks):
        i = place(0, b, tokens)
        w = _block(isa, width, entries, at, m.bits, states + 256 * b)
        totals = add_tokens(
            isa, w, 4, quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i, totals
        )
        at += 32 * m.bits
    if m.tail > 0:
        i = place(0, m.blocks, tokens)
        w = tail_weights(isa, width, m, entries, at, states + 256 * m.blocks, scratch)
        totals = add_tokens(
            isa, w, (m.tail + 63) // 64, quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i,
            totals,
        )  # fmt: skip
    finish_tokens(totals, (get_f32(m.scale + 4 * shared(n, m.scale_rows)),), shift, out + 4 * n, 4 * m.rows, accumulate)


@nb.njit(cache=True)
def _rows(isa, width, count, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch):
    """Some rows of `count` tokens (a tag). A row without a neighbour of its path goes token by token."""
    m, tokens = read_matrix(matrix), count_of(count)
    states, n = scratch + UNPACKED, first
    begin(width, matrix, first, states, scratch)
    while n < last:
        shift = bias + 4 * n if bias != 0 else nb.int64(0)
        if n + 2 <= last and of_one_path(width, m, n, 2):
            enter_row(width, matrix, n, states)
            _two_rows(
                isa, width, count, matrix, n, quantized, sums, scales, high, tokens, states, out, shift, accumulate,
                scratch,
            )  # fmt: skip
            n += 2
            continue
        for t in range(tokens):
            begin(width, matrix, n, states, scratch)
            enter_row(width, matrix, n, states)
            i = place(t, 0, tokens)
            _one_row(
                isa, width, matrix, n, quantized + 256 * i, sums + 64 * i, scales + 4 * i, high + HIGH_TOKEN * i,
                tokens, states, out + 4 * t * m.rows, shift, accumulate, scratch,
            )  # fmt: skip
        n += 1


def count_of(count):
    """A tag's number. Stands for the code that Numba makes below."""


@overload(count_of)
def _count_of(count):
    number = count.value
    return lambda count: number


@nb.njit(cache=True)
def rows_in_registers(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    """See rows.py; tokens: at most MOST."""
    if tokens == 4:
        _rows(
            isa, width, _FOUR, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch
        )  # fmt: skip
    elif tokens == 3:
        _rows(
            isa, width, _THREE, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch
        )  # fmt: skip
    elif tokens == 2:
        _rows(isa, width, _TWO, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch)
    else:
        _rows(isa, width, _ONE, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch)
