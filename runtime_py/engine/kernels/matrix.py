"""A codebook matrix as the kernels see it: one row of int64 numbers, most of them addresses."""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import BLOCK_COLUMNS, planes
from runtime_py.simd.codes import RAW, TRELLIS, TRELLIS_STATE_BITS, WIDTHS, tail_places, tail_segment
from runtime_py.simd.isa import Tag, TagType
from runtime_py.simd.vectors import get_u8, load_bytes, put_i8
from runtime_py.system.guard_pages import settled

# Fields of a record, by position.
CODES, ROW_BYTES, BOOK, BOOK_BYTES, BOOK_ROWS, SCALE, SCALE_ROWS, ROWS, COLUMNS, WIDTH, BLOCKS, TAIL = range(12)
PLACES, BITS = 12, 13
FIELDS = 16
# In WIDTH, which picks a compiled kernel: bits of a code, or one of these (simd/codes.py). BITS is what is stored.
RAW_WIDTH = 9  # 8 bits without lookup
TRELLIS_WIDTH = 16  # plus the bits of a trellis code


def is_fast(layout: CodebookLayout) -> bool:
    """Whether the integer kernels take this layout: one codebook along each row."""
    return layout.groups == 1


def matrix_record(
    layout: CodebookLayout | TrellisLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
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
    record[CODES], record[ROW_BYTES] = codes.ctypes.data, codes.shape[1]
    record[BOOK], record[BOOK_BYTES] = codebook.ctypes.data, codebook[0].nbytes
    record[BOOK_ROWS], record[SCALE_ROWS] = layout.rows_per_codebook, layout.rows_per_scale
    record[SCALE], record[ROWS], record[COLUMNS] = scale.ctypes.data, layout.N, layout.K
    record[WIDTH], record[BITS], record[BLOCKS], record[TAIL] = _width(layout, codebook), layout.bits, blocks, tail
    return record, [codes, codebook, scale, places]


def _width(layout: CodebookLayout | TrellisLayout, codebook: np.ndarray) -> int:
    if isinstance(layout, TrellisLayout):
        if layout.state_bits != TRELLIS_STATE_BITS:
            raise ValueError(f"the kernels take trellis codes of {TRELLIS_STATE_BITS} state bits")
        return TRELLIS_WIDTH + layout.bits
    raw = layout.bits == 8 and np.array_equal(codebook, np.broadcast_to(np.arange(-128, 128), codebook.shape))
    return RAW_WIDTH if raw else layout.bits


def width_tag(number: int) -> Tag:
    """The compile-time constant of a WIDTH."""
    if number > TRELLIS_WIDTH:
        return TRELLIS[number - TRELLIS_WIDTH]
    return RAW if number == RAW_WIDTH else WIDTHS[number]


def width_number(tag: Tag | TagType) -> int:
    """The WIDTH that a constant stands for."""
    return {"bits": 0, "raw": RAW_WIDTH - 8, "trellis": TRELLIS_WIDTH}[tag.kind] + int(tag.value)


def padded(columns: int) -> int:
    """Columns rounded up to a whole vector of bytes."""
    return -(-columns // 64) * 64


_PLANE_COUNT = np.array([0, *(len(planes(b)) for b in range(1, 9))], np.int64)


@nb.njit(cache=True)
def plane_count(bits):
    """Bit planes of codes of this many bits."""
    return _PLANE_COUNT[bits]


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
def tail_codes(width, bits, codes, places, scratch, index):
    """Codes of columns 64 * index.. of the last block: from the stored planes, or from `scratch` if unpacked there."""
    if places != 0:
        return tail_segment(width, codes, places + 128 * plane_count(bits) * index)
    return load_bytes(scratch + 64 * index)
