"""Widths of stored matrices as compile-time constants, and codes of blocks that are no whole vectors."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.records.stored_matrix import GROUPS_WIDTH, RAW_WIDTH, TRELLIS_WIDTH
from runtime_py.simd.codes import RAW, TRELLIS, WIDTHS, tail_segment
from runtime_py.simd.isa import Tag
from runtime_py.simd.vectors import get_u8, load_bytes, put_i8


def width_tag(number: int) -> Tag:
    """The compile-time constant of a width."""
    if number >= GROUPS_WIDTH:
        return Tag("groups", number - GROUPS_WIDTH)
    if number > TRELLIS_WIDTH:
        return TRELLIS[number - TRELLIS_WIDTH]
    return RAW if number == RAW_WIDTH else WIDTHS[number]


def padded(columns: int) -> int:
    """Columns rounded up to a whole vector of bytes."""
    return -(-columns // 64) * 64


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
