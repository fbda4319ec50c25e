"""A codebook matrix as the kernels see it: one row of int64 numbers, most of them addresses."""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract import CodebookLayout
from export.packing import BLOCK_COLUMNS, planes
from runtime_py.engine.fence import settled
from runtime_py.simd.codes import tail_places, tail_segment
from runtime_py.simd.vectors import get_u8, load_bytes, put_i8

# Fields of a record, by position.
CODES, ROW_BYTES, BOOK, BOOK_BYTES, BOOK_ROWS, SCALE, SCALE_ROWS, ROWS, COLUMNS, WIDTH, BLOCKS, TAIL, PLACES = range(13)
FIELDS = 16
RAW_WIDTH = 9  # in WIDTH: 8 bits without lookup (RAW in simd/codes.py)


def is_fast(layout: CodebookLayout) -> bool:
    """Whether the integer kernels take this layout: one codebook along each row."""
    return layout.groups == 1


def matrix_record(
    layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The record (int64 [FIELDS]) and the arrays that must stay alive with it. scale must be float32."""
    if not (codes.flags.c_contiguous and codebook.flags.c_contiguous and scale.flags.c_contiguous):
        raise ValueError("codes, codebook and scale must be contiguous")
    layout.check(codes, codebook, scale)
    codes, codebook, scale = settled(codes), settled(codebook), settled(scale)
    blocks, tail = divmod(layout.K, BLOCK_COLUMNS)
    record = np.zeros(FIELDS, np.int64)
    places = np.zeros(1, np.int64)
    if tail and tail % 64 == 0:
        places = settled(np.array(tail_places(tail, layout.bits), np.int64))
        record[PLACES] = places.ctypes.data
    raw = layout.bits == 8 and bool(np.array_equal(codebook, np.broadcast_to(np.arange(-128, 128), codebook.shape)))
    record[CODES], record[ROW_BYTES] = codes.ctypes.data, codes.shape[1]
    record[BOOK], record[BOOK_BYTES] = codebook.ctypes.data, codebook.shape[1] * codebook.shape[2]
    record[BOOK_ROWS], record[SCALE_ROWS] = layout.rows_per_codebook, layout.rows_per_scale
    record[SCALE], record[ROWS], record[COLUMNS] = scale.ctypes.data, layout.N, layout.K
    record[WIDTH], record[BLOCKS], record[TAIL] = RAW_WIDTH if raw else layout.bits, blocks, tail
    return record, [codes, codebook, scale, places]


def padded(columns: int) -> int:
    """Columns rounded up to a whole vector of bytes."""
    return -(-columns // 64) * 64


_PLANE_COUNT = np.array([0, *(len(planes(b)) for b in range(1, 9)), 1], np.int64)  # by WIDTH


@nb.njit(cache=True)
def plane_count(width):
    """Bit planes of codes of this WIDTH."""
    return _PLANE_COUNT[width]


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
def tail_codes(width, number, codes, places, scratch, index):
    """Codes of columns 64 * index.. of the last block: from the stored planes, or from `scratch` if unpacked there."""
    if places != 0:
        return tail_segment(width, codes, places + 128 * plane_count(number) * index)
    return load_bytes(scratch + 64 * index)
