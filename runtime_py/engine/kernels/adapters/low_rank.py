"""The two halves of a term, y += f(x @ a^T + bias) @ b + bias, on float32 activations and factors of 8, 16 or 32 bits.

A low-rank term has neither biases nor f; a bottleneck (export/adapters/sites.py) has both.

Factors lie as they are read, so that memory is read in a straight line: a [rank, columns] as groups of ROWS rows, of
which 16 columns of each row follow one another; b [rank, rows] as blocks of COLUMNS columns, one row behind the other.
What is missing of a vector, group or block is zeros (`laid_down`, `laid_up`). Sums go in one order whatever passes
beside a token, so its bits are its own: those of a row of a in 16 lanes from the first column on, added in a fixed
tree; those of a number of y over the ranks in order, beginning with y.
"""

from __future__ import annotations

import numba as nb
from llvmlite import ir

from runtime_py.engine.kernels.elementwise import activated
from runtime_py.engine.layout.factors import COLUMNS
from runtime_py.simd.vectors import (
    I8,
    Floats,
    add,
    fused,
    get_f32,
    load_floats,
    load_halfs,
    load_some,
    loader,
    prefetch,
    put_f32,
    splat_float,
    store_some,
    sum_floats,
    zero_floats,
)

_AHEAD = 2048  # bytes of factors that are asked for before they are needed; prefetching never faults

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
def down(x, columns, a, scales, item_bytes, bias, activation, first, last, t):
    """t[first:last] = f(scale * (x [columns] . rows of a) + bias); scales, bias: float32 [rank], 0 for none.

    first: a multiple of ROWS; last - first <= ROWS. activation: as a term's record has it.
    """
    size = 16 * item_bytes
    at = a + first * ((columns + 15) // 16) * size
    s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for k in range(0, columns, 16):
        prefetch(at + _AHEAD)
        prefetch(at + _AHEAD + 64)
        v = load_some(x + 4 * k, columns - k)
        s0 = fused(v, _part(at, item_bytes, 0), s0)
        s1 = fused(v, _part(at + size, item_bytes, 0), s1)
        s2 = fused(v, _part(at + 2 * size, item_bytes, 0), s2)
        s3 = fused(v, _part(at + 3 * size, item_bytes, 0), s3)
        at += 4 * size
    sums = (sum_floats(s0), sum_floats(s1), sum_floats(s2), sum_floats(s3))
    for i in range(last - first):
        scale = get_f32(scales + 4 * (first + i)) if scales != 0 else nb.float32(1.0)
        value = sums[i] * scale
        if bias != 0:
            value += get_f32(bias + 4 * (first + i))
        put_f32(t + 4 * (first + i), value)
    if activation != 0:
        to = t + 4 * first
        store_some(to, activated(activation - 1, load_some(to, last - first)), last - first)


@nb.njit(cache=True)
def up(t, rank, b, scales, item_bytes, bias, rows, first, last, y):
    """y[first:last] += sum over r of scale[r] * t[r] * b[r, first:last], behind the bias where that is not 0.

    first: a multiple of COLUMNS.
    """
    size = COLUMNS * item_bytes
    at = b + first // COLUMNS * rank * size
    for n in range(first, last, COLUMNS):
        some, to = min(last - n, COLUMNS), y + 4 * n
        y0, y1 = load_some(to, some), load_some(to + 64, max(some - 16, 0))
        y2, y3 = load_some(to + 128, max(some - 32, 0)), load_some(to + 192, max(some - 48, 0))
        if bias != 0:
            c = bias + 4 * n
            y0, y1 = add(y0, load_some(c, some)), add(y1, load_some(c + 64, max(some - 16, 0)))
            y2 = add(y2, load_some(c + 128, max(some - 32, 0)))
            y3 = add(y3, load_some(c + 192, max(some - 48, 0)))
        for r in range(rank):
            prefetch(at + _AHEAD)
            prefetch(at + _AHEAD + 64)
            value = get_f32(t + 4 * r)
            if scales != 0:
                value *= get_f32(scales + 4 * r)
            v = splat_float(value)
            y0 = fused(v, _part(at, item_bytes, 0), y0)
            y1 = fused(v, _part(at, item_bytes, 16), y1)
            y2 = fused(v, _part(at, item_bytes, 32), y2)
            y3 = fused(v, _part(at, item_bytes, 48), y3)
            at += size
        store_some(to, y0, some)
        store_some(to + 64, y1, max(some - 16, 0))
        store_some(to + 128, y2, max(some - 32, 0))
        store_some(to + 192, y3, max(some - 48, 0))
