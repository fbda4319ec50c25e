"""Codebook matrices with several codebooks along a row, and single rows of any: plain float32, for every layout."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matrix import unpack_block
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.simd.vectors import (
    fused,
    get_f32,
    get_i8,
    get_u8,
    load_some,
    put_f32,
    sum_floats,
    zero_floats,
)


@nb.njit(cache=True)
def grouped_row(matrix, groups, group_size, row, target, scratch):
    """Dequantize one row to float32 [columns] at target; group_size columns share a codebook. scratch: 256 bytes."""
    m = read_matrix(matrix)
    columns, bits = m.columns, min(m.width, 8)
    at = m.codes + row * m.row_bytes
    book = m.book + row // m.book_rows * m.book_bytes
    scale = m.scale + row // m.scale_rows * 4 * groups
    for start in range(0, columns, 256):
        some = min(columns - start, 256)
        unpack_block(at, bits, some, scratch)
        k = 0
        while k < some:  # one division for each group
            g = (start + k) // group_size
            entries, factor, end = book + (g << bits), get_f32(scale + 4 * g), min((g + 1) * group_size - start, some)
            for j in range(k, end):
                put_f32(target + 4 * (start + j), nb.float32(get_i8(entries + get_u8(scratch + j))) * factor)
            k = end
        at += 32 * bits


@nb.njit(cache=True)
def grouped_rows(
    source, stride, tokens, matrix, groups, group_size, first, last, out, out_stride, bias, accumulate, scratch
):
    """out[:, first:last] (= or +=) source [tokens, stride] times rows of the matrix, plus bias; float32 throughout."""
    columns = read_matrix(matrix).columns
    weights = scratch + 256
    for n in range(first, last):
        grouped_row(matrix, groups, group_size, n, weights, scratch)
        for t in range(tokens):
            total = zero_floats()
            for k in range(0, columns, 16):
                some = min(columns - k, 16)
                total = fused(load_some(source + 4 * (t * stride + k), some), load_some(weights + 4 * k, some), total)
            value = sum_floats(total)
            where = out + 4 * (t * out_stride + n)
            if bias != 0:
                value += get_f32(bias + 4 * n)
            put_f32(where, value + get_f32(where) if accumulate else value)
