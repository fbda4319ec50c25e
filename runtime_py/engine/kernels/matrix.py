"""Codes of blocks that are no whole vectors."""

from __future__ import annotations

import numba as nb

from runtime_py.simd.codes import tail_segment
from runtime_py.simd.vectors import get_u8, load_bytes, put_i8


@nb.njit(cache=True)
def unpack_block(address, bits, columns, out):
    """Codes of a block of any length, one a byte, to `out`: the slow way, for lengths not divisible by 64."""
    for k in range(columns):
        put_i8(out + k, nb.int32(0))
    at = address
    for p in (8, 4, 2, 1):
        if bits & p:
            size = (columns * p + 7) // 8
            mask = (1 << p) - 1
            for f in range(8 // p):
                first = f * size
                for j in range(min(size, columns - first)):
                    field = (get_u8(at + j) >> (f * p)) & mask
                    code = (get_u8(out + first + j) << p) | field
                    put_i8(out + first + j, nb.int32(code))
            at += size


@nb.njit(cache=True, inline="always")
def tail_codes(width, tail, codes, scratch, index):
    """Codes of columns 64 * index.. of a last block of `tail` columns: as stored, or unpacked at `scratch`."""
    if tail % 64 == 0:
        return tail_segment(width, codes, tail, nb.int64(index))
    return load_bytes(scratch + 64 * index)
