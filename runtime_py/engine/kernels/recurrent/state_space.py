"""The selective state space of Mamba-2 over columns of a head's state.

The state lies as that of the delta rule (delta_net.py): [columns / COLUMNS][state_size][COLUMNS]. What a token writes
does not depend on the state, so four tokens pass a row of it while it is in registers: each row is read and written
once for all four. For each token and number that is a decay and two multiplications, where the products of the chunked
form (arXiv 2405.21060, section 6) have two and more within a chunk; but the bits are those of one token after another:
where calls begin and end changes nothing.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.elementwise import exponential
from runtime_py.engine.kernels.recurrent.delta_net import softplus
from runtime_py.engine.layout.recurrent import COLUMNS, GROUP
from runtime_py.simd.vectors import (
    add,
    broadcast_float,
    fused,
    get_f32,
    load_floats,
    load_some,
    maximum,
    minimum,
    multiply,
    put_f32,
    splat_float,
    store_floats,
    store_some,
    zero_floats,
)

_ROW, _HALF = 4 * COLUMNS, 64  # bytes of a row of a block, and of a vector
_TOGETHER = 4  # tokens


@nb.njit(cache=True)
def step_numbers(step, stride, rate, bias, least, most, tokens, numbers):
    """float32 [2, GROUP] of some tokens of a head: softplus(step + bias) in its limits, and the factor on the state."""
    gate = numbers + 4 * GROUP
    for t in range(tokens):
        put_f32(numbers + 4 * t, get_f32(step + 4 * t * stride))
    length = softplus(add(load_some(numbers, tokens), splat_float(bias)))
    length = minimum(splat_float(most), maximum(splat_float(least), length))  # in this order NaN stays
    store_some(numbers, length, tokens)
    store_some(gate, exponential(multiply(length, splat_float(rate))), tokens)


@nb.njit(cache=True, inline="always")
def _passed(a, gate, value, written, read, total):
    """A row of the state behind a token, and the sum for the token with it."""
    a = fused(broadcast_float(written), value, multiply(a, gate))
    return a, fused(a, broadcast_float(read), total)


@nb.njit(cache=True)
def _one(before, after, written, read, size, value, columns, skip, length, gate, out):
    """A token passes both vectors of every row."""
    first, second = load_some(value, columns), load_some(value + _HALF, columns - 16)
    va, vb = multiply(first, length), multiply(second, length)
    ya, yb = zero_floats(), zero_floats()
    for i in range(size):
        a, ya = _passed(load_floats(before + _ROW * i), gate, va, written + 4 * i, read + 4 * i, ya)
        b, yb = _passed(load_floats(before + _ROW * i + _HALF), gate, vb, written + 4 * i, read + 4 * i, yb)
        store_floats(after + _ROW * i, a)
        store_floats(after + _ROW * i + _HALF, b)
    store_some(out, fused(first, skip, ya), columns)
    store_some(out + _HALF, fused(second, skip, yb), columns - 16)


@nb.njit(cache=True)
def _four(before, after, written, read, stride, size, value, columns, skip, numbers, out, out_stride):
    """Four tokens pass one vector of every row. stride, out_stride: bytes."""
    gates = numbers + 4 * GROUP
    g0, g1 = broadcast_float(gates), broadcast_float(gates + 4)
    g2, g3 = broadcast_float(gates + 8), broadcast_float(gates + 12)
    x0, x1 = load_some(value, columns), load_some(value + stride, columns)
    x2, x3 = load_some(value + 2 * stride, columns), load_some(value + 3 * stride, columns)
    v0, v1 = multiply(x0, broadcast_float(numbers)), multiply(x1, broadcast_float(numbers + 4))
    v2, v3 = multiply(x2, broadcast_float(numbers + 8)), multiply(x3, broadcast_float(numbers + 12))
    y0, y1, y2, y3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for i in range(size):
        w, r = written + 4 * i, read + 4 * i
        a, y0 = _passed(load_floats(before + _ROW * i), g0, v0, w, r, y0)
        a, y1 = _passed(a, g1, v1, w + stride, r + stride, y1)
        a, y2 = _passed(a, g2, v2, w + 2 * stride, r + 2 * stride, y2)
        a, y3 = _passed(a, g3, v3, w + 3 * stride, r + 3 * stride, y3)
        store_floats(after + _ROW * i, a)
    store_some(out, fused(x0, skip, y0), columns)
    store_some(out + out_stride, fused(x1, skip, y1), columns)
    store_some(out + 2 * out_stride, fused(x2, skip, y2), columns)
    store_some(out + 3 * out_stride, fused(x3, skip, y3), columns)


@nb.njit(cache=True)
def state_block(before, after, written, read, value, stride, size, columns, tokens, skip, numbers, out, out_stride):
    """`tokens` tokens (GROUP at most) pass one block of a head's state, of which `columns` are there.

    written, read, value, out: float32 rows of the head (B, C, X and Y), the latter two from the block's first column
    on. numbers: of step_numbers(). before, after: float32 [size, COLUMNS], the same or apart.
    """
    shared = splat_float(skip)
    fours = tokens // _TOGETHER
    for four in range(fours):
        t = _TOGETHER * four
        row, to = 4 * t * stride, out + 4 * t * out_stride
        for half in range(2):
            _four(
                before + _HALF * half, after + _HALF * half, written + row, read + row, 4 * stride, size,
                value + row + _HALF * half, columns - 16 * half, shared, numbers + 4 * t, to + _HALF * half,
                4 * out_stride,
            )  # fmt: skip
        before = after
    for t in range(_TOGETHER * fours, tokens):
        row = 4 * t * stride
        _one(
            before, after, written + row, read + row, size, value + row, columns, shared,
            broadcast_float(numbers + 4 * t), broadcast_float(numbers + 4 * (GROUP + t)), out + 4 * t * out_stride,
        )  # fmt: skip
        before = after
