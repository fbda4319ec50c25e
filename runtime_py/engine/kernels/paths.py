"""Trellis codes in the kernels: the states of a row follow from its codes and the states of the row above.

state[n, k] = (state[n - 1, k] << bits | code[n, k]) mod 256 (export/contract/formats/trellis.py). A thread goes down
its rows in order
and keeps one row of states, a byte a column, in its scratch memory, which stays in the first-level cache. A run that
begins inside a codebook's rows first follows the few rows above that still show in a state. For every other width the
functions here leave nothing behind in the compiled code.
"""

from __future__ import annotations

import numba as nb
from numba.core import types
from numba.extending import intrinsic, overload

from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.machine.widths import PATHS, TRELLIS_STATE_BITS
from runtime_py.simd.codes import keep, lookup, segment, shift_words, whole
from runtime_py.simd.vectors import Bytes, load, pointer, put_i8


@intrinsic
def follow(typingctx, width, code, states):
    """64 codes as indices of the table: themselves, or for trellis codes the states at address `states`, moved on."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        if kind.kind not in PATHS:
            return args[1]
        new = (1 << kind.value) - 1  # the bits of a state that the code gives
        moved = shift_words(builder, load(builder, args[2], Bytes.llvm), [-kind.value] * 32)
        state = builder.or_(keep(builder, moved, 255 - new), keep(builder, args[1], new))
        kept = args[1]  # where a state is two codes the next one needs no more, whatever lies above the code
        if 2 * kind.value != TRELLIS_STATE_BITS:
            kept = state = whole(builder, state)
        builder.store(kept, pointer(builder, args[2], state.type), align=1)
        return state

    return Bytes(width, Bytes, types.int64), codegen


@nb.njit(cache=True, inline="always")
def weights(isa, width, entries, codes, states):
    """Weights of a full block in four parts of 64 columns; states: address of theirs.

    All codes are unpacked before a state is written: for all that LLVM knows they could lie there.
    """
    c0, c1 = segment(width, codes, 0), segment(width, codes, 1)
    c2, c3 = segment(width, codes, 2), segment(width, codes, 3)
    w0, w1 = (
        lookup(isa, width, entries, follow(width, c0, states)),
        lookup(isa, width, entries, follow(width, c1, states + 64)),
    )
    w2, w3 = (
        lookup(isa, width, entries, follow(width, c2, states + 128)),
        lookup(isa, width, entries, follow(width, c3, states + 192)),
    )
    return w0, w1, w2, w3


@nb.njit(cache=True)
def _clear(states, columns):
    for k in range((columns + 63) // 64 * 64):
        put_i8(states + k, nb.int32(0))


@nb.njit(cache=True)
def _pass_by(width, matrix, n, states, scratch):
    """Move the states on by row n."""
    m = read_matrix(matrix)
    at = m.codes + n * m.row_bytes
    for _ in range(m.blocks):
        follow(width, segment(width, at, 0), states)
        follow(width, segment(width, at, 1), states + 64)
        follow(width, segment(width, at, 2), states + 128)
        follow(width, segment(width, at, 3), states + 192)
        at += 32 * m.bits
        states += 256
    if m.tail > 0:
        if m.tail % 64 != 0:
            unpack_block(at, m.bits, m.tail, scratch)
        for s in range((m.tail + 63) // 64):
            follow(width, tail_codes(width, m.tail, at, scratch, s), states + 64 * s)


def begin(width, matrix, first, states, scratch):
    """Set the states to those above row `first`. Stands for the code that Numba makes below."""


@overload(begin)
def _begin(width, matrix, first, states, scratch):
    if width.kind not in PATHS:
        return lambda width, matrix, first, states, scratch: None
    shown = -(-8 // width.value) - 1  # rows above that a state shows

    def code(width, matrix, first, states, scratch):
        m = read_matrix(matrix)
        _clear(states, m.columns)
        for n in range(max(first - shown, first // m.book_rows * m.book_rows), first):
            _pass_by(width, matrix, n, states, scratch)

    return code


def enter_row(width, matrix, n, states):
    """Paths start anew with every codebook. Stands for the code that Numba makes below."""


@overload(enter_row)
def _enter_row(width, matrix, n, states):
    if width.kind not in PATHS:
        return lambda width, matrix, n, states: None

    def code(width, matrix, n, states):
        m = read_matrix(matrix)
        if n % m.book_rows == 0:
            _clear(states, m.columns)

    return code


def of_one_path(width, m, n, rows):
    """Whether no path of trellis codes ends within rows n..n + rows - 1. Stands for the code that Numba makes below."""


@overload(of_one_path)
def _of_one_path(width, m, n, rows):
    if width.kind not in PATHS:
        return lambda width, m, n, rows: True
    return lambda width, m, n, rows: n % m.book_rows + rows <= m.book_rows
