"""Weights of the last, shorter blocks of rows, in scratch memory.

That begins with 256 bytes for an unpacked block; then come the weights of up to four rows, 256 bytes each, and the
states of trellis codes.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.paths import follow
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.simd.codes import lookup, table
from runtime_py.simd.vectors import prefetch, store_bytes

STATES = 256 + 4 * 256  # where those of trellis codes begin, a byte for each column
_AHEAD = 4096  # as in matvec.py


@nb.njit(cache=True)
def decode_tails(isa, width, matrix, first, count, states, scratch):
    """Weights of rows first..first + count - 1. states: address of those of the whole row."""
    m = read_matrix(matrix)
    for r in range(count):
        n, decoded = first + r, scratch + 256 + 256 * r
        entries = table(isa, width, m.book + n // m.book_rows * m.book_bytes)
        at = m.codes + n * m.row_bytes + m.blocks * 32 * m.bits
        prefetch(at + _AHEAD)
        if m.tail % 64 != 0:
            unpack_block(at, m.bits, m.tail, scratch)
        for k in range((m.tail + 63) // 64):
            code = follow(width, tail_codes(width, m.tail, at, scratch, k), states + 256 * m.blocks + 64 * k)
            store_bytes(decoded + 64 * k, lookup(isa, width, entries, code))
