"""A key-value cache of integer codes: how it lies in memory, and the rotation that makes heads easy to round.

Keys and values of one head lie in blocks of 16 positions: codes, then 16 float32 scales, one for each position. `wide`
is head_dim rounded up to 16; the dimensions behind head_dim have the code 0.

8 bits (-127 to 127, int8). Keys: [wide / 4][16 positions][4 dimensions]. Values: [wide / 16][4 fours of positions][16
dimensions][4 positions].
4 bits (-8 to 7, stored plus 8). Keys: [wide / 8][16 positions][4 bytes], byte i holding dimension 8j + i in its low
half and 8j + 4 + i in its high half. Values: [wide / 16][2 eights of positions][16 dimensions][4 bytes], byte i holding
position 8h + i low and 8h + 4 + i high.

So one integer dot product takes 16 positions (or dimensions) with four dimensions (positions), and no sum crosses
lanes.

Before they are rounded, the numbers of a head are multiplied with a Walsh-Hadamard matrix, in blocks of the largest
power of two that divides head_dim: no number then stands out, which would take the others' precision (as in QuaRot,
arXiv 2404.00456, section 4). Queries get the same matrix, which leaves all scores as they were, and so does the mix of
values, because the matrix is its own inverse.

Keys of a head have much in common, which would take most of 4 bits. So those from position CENTERED on are stored
without the mean of the keys at positions 1 to 15, as the cache has them (the first key is often one that all attend to,
and unlike the others); a query's product with that mean is added to their scores (SageAttention, arXiv 2410.02367,
section 4.2, takes the mean of all).
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.simd.cached import butterfly1, butterfly2, butterfly4, butterfly8
from runtime_py.simd.vectors import (
    add,
    get_f32,
    get_u8,
    load_floats,
    multiply,
    put_f32,
    splat_float,
    store_floats,
    subtract,
)

CENTERED = 16  # positions whose keys of 4 bits are stored as they are
_F, _I = np.float32, nb.int32


@nb.njit(cache=True)
def rotate_codes(row, head_dim):
    """Multiply float32 [wide] in place with the matrix of a head, whose columns have length 1."""
    wide, size = (head_dim + 15) // 16 * 16, head_dim & -head_dim
    factor = splat_float(_F(1.0) / np.sqrt(_F(size)))
    for k in range(0, wide, 16):
        x = load_floats(row + 4 * k)
        if size > 1:
            x = butterfly1(x)
        if size > 2:
            x = butterfly2(x)
        if size > 4:
            x = butterfly4(x)
        if size > 8:
            x = butterfly8(x)
        store_floats(row + 4 * k, multiply(x, factor))
    apart = 16
    while apart < size:
        for k in range(0, wide, 16):
            if k & apart == 0:
                x, y = load_floats(row + 4 * k), load_floats(row + 4 * (k + apart))
                store_floats(row + 4 * k, add(x, y))
                store_floats(row + 4 * (k + apart), subtract(x, y))
        apart *= 2


@nb.njit(cache=True)
def key_center(keys, wide, center):
    """The mean of a head's keys at positions 1 to 15, float32 [wide], from its first block of 4 bits."""
    scales = keys + 8 * wide
    for j in range(wide // 8):
        for i in range(4):
            low, high = _F(0.0), _F(0.0)
            for p in range(1, CENTERED):
                codes, scale = get_u8(keys + 64 * j + 4 * p + i), get_f32(scales + 4 * p)
                low += scale * _F(_I(codes & 15) - _I(8))
                high += scale * _F(_I(codes >> 4) - _I(8))
            put_f32(center + 4 * (8 * j + i), low * _F(1.0 / 15.0))
            put_f32(center + 4 * (8 * j + 4 + i), high * _F(1.0 / 15.0))
