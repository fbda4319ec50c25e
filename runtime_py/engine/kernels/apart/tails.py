"""Weights of the last, shorter blocks of rows."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matrix import unpack_block
from runtime_py.engine.kernels.paths import follow
from runtime_py.simd.codes import lookup, tail_segment
from runtime_py.simd.vectors import load_bytes, prefetch

_AHEAD = 4096  # as in matvec.py
UNPACKED = 256  # bytes of scratch memory that tail_weights takes


@nb.njit(cache=True, inline="always")
def _stored(isa, width, entries, at, tail, segment, states):
    """64 columns of a block of so many, which is a multiple of 64."""
    codes = tail_segment(width, at, tail, segment)
    return lookup(isa, width, entries, follow(width, codes, states + 64 * segment))


@nb.njit(cache=True, inline="always")
def _unpacked(isa, width, entries, scratch, segment, states):
    codes = load_bytes(scratch + 64 * segment)
    return lookup(isa, width, entries, follow(width, codes, states + 64 * segment))


@nb.njit(cache=True, inline="always")
def tail_weights(isa, width, m, entries, at, states, scratch):
    """Weights of a last block whose codes are at `at`, in four parts of 64 columns; parts behind its end are any.

    states: address of the block's own; scratch: UNPACKED bytes. Lengths are told apart so that each is straight code.
    """
    prefetch(at + _AHEAD)
    if m.tail == 64:
        w0 = _stored(isa, width, entries, at, 64, 0, states)
        w1 = w2 = w3 = w0
    elif m.tail == 128:
        w0 = _stored(isa, width, entries, at, 128, 0, states)
        w1 = w2 = w3 = _stored(isa, width, entries, at, 128, 1, states)
    elif m.tail == 192:
        w0 = _stored(isa, width, entries, at, 192, 0, states)
        w1 = _stored(isa, width, entries, at, 192, 1, states)
        w2 = w3 = _stored(isa, width, entries, at, 192, 2, states)
    else:
        unpack_block(at, m.bits, m.tail, scratch)
        w0 = _unpacked(isa, width, entries, scratch, 0, states)
        w1 = w2 = w3 = w0
        if m.tail > 64:
            w1 = _unpacked(isa, width, entries, scratch, 1, states)
        if m.tail > 128:
            w2 = _unpacked(isa, width, entries, scratch, 2, states)
        if m.tail > 192:
            w3 = _unpacked(isa, width, entries, scratch, 3, states)
    return w0, w1, w2, w3
