"""The two halves of a low-rank term, y += (x @ a^T) @ b, on float32 activations and factors of 8, 16 or 32 bits.

Factors are padded: rows of a [rank, columns] and of b [rank, rows] are whole vectors of 16 numbers, zeros behind the
last. Sums go in one order whatever passes beside a token, so its bits are its own: those of a row of a in 16 lanes from
the first column on, added in a fixed tree; those of a row of y over the ranks in order, beginning with y.
"""

from __future__ import annotations

import numba as nb
from llvmlite import ir

from runtime_py.simd.vectors import (
    I8,
    Floats,
    fused,
    get_f32,
    load_floats,
    load_halfs,
    load_some,
    loader,
    put_f32,
    splat_float,
    store_some,
    sum_floats,
    zero_floats,
)

ROWS = 4  # rows of a that are multiplied together
COLUMNS = 64  # numbers of y that are added to together: of every row of b a line or two of the cache

_load_int8 = loader(Floats, ir.VectorType(I8, 16), lambda b, v: b.sitofp(v, Floats.llvm))


@nb.njit(cache=True, inline="always")
def _part(at, item_bytes, k):
    """16 numbers of a row from k on."""
    if item_bytes == 2:
        return load_halfs(at + 2 * k)
    if item_bytes == 1:
        return _load_int8(at + k)
    return load_floats(at + 4 * k)


@nb.njit(cache=True)
def down(x, columns, a, scales, item_bytes, first, last, t):
    """t[first:last] = scale * (x [columns] . rows of a); scales: float32 [rank], 0 for none; last - first <= ROWS."""
    size = (columns + 15) // 16 * 16 * item_bytes
    at0 = a + first * size
    at1 = a + min(first + 1, last - 1) * size
    at2 = a + min(first + 2, last - 1) * size
    at3 = a + min(first + 3, last - 1) * size
    s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for k in range(0, columns, 16):
        v = load_some(x + 4 * k, columns - k)
        s0 = fused(v, _part(at0, item_bytes, k), s0)
        s1 = fused(v, _part(at1, item_bytes, k), s1)
        s2 = fused(v, _part(at2, item_bytes, k), s2)
        s3 = fused(v, _part(at3, item_bytes, k), s3)
    sums = (sum_floats(s0), sum_floats(s1), sum_floats(s2), sum_floats(s3))
    for i in range(last - first):
        scale = get_f32(scales + 4 * (first + i)) if scales != 0 else nb.float32(1.0)
        put_f32(t + 4 * (first + i), sums[i] * scale)


@nb.njit(cache=True)
def up(t, rank, b, scales, item_bytes, rows, first, last, y):
    """y[first:last] += sum over r of scale[r] * t[r] * b[r, first:last]; first and last as b's columns."""
    size = (rows + 15) // 16 * 16 * item_bytes
    for n in range(first, last, COLUMNS):
        some = min(last - n, COLUMNS)
        to = y + 4 * n
        y0 = load_some(to, some)
        y1 = load_some(to + 64, some - 16) if some > 16 else zero_floats()
        y2 = load_some(to + 128, some - 32) if some > 32 else zero_floats()
        y3 = load_some(to + 192, some - 48) if some > 48 else zero_floats()
        for r in range(rank):
            value = get_f32(t + 4 * r)
            if scales != 0:
                value *= get_f32(scales + 4 * r)
            v, at = splat_float(value), b + r * size
            y0 = fused(v, _part(at, item_bytes, n), y0)
            if some > 16:
                y1 = fused(v, _part(at, item_bytes, n + 16), y1)
            if some > 32:
                y2 = fused(v, _part(at, item_bytes, n + 32), y2)
            if some > 48:
                y3 = fused(v, _part(at, item_bytes, n + 48), y3)
        store_some(to, y0, some)
        if some > 16:
            store_some(to + 64, y1, some - 16)
        if some > 32:
            store_some(to + 128, y2, some - 32)
        if some > 48:
            store_some(to + 192, y3, some - 48)
