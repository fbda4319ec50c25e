"""Norms, activations, rotary positions and small sums over one token, in 16 float32 lanes. Addresses in, memory out.

Reductions use the fixed tree of simd/vectors.py, exponentials one polynomial: the same bits on every machine.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.layout.functions import GELU, GELU_TANH, RELU2, SIGMOID, SILU, TANH
from runtime_py.simd.vectors import (
    absolute,
    add,
    divide,
    first_lanes,
    fused,
    get_f16,
    get_f32,
    get_i32,
    get_i64,
    load_halfs,
    load_some,
    load_some_halfs,
    maximum,
    minimum,
    multiply,
    power_of_two,
    put_f32,
    rounded,
    splat_float,
    store_some,
    subtract,
    sum_floats,
    to_floats,
    zero_floats,
)

_F = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F(1.44269504088896341), _F(-0.693359375), _F(2.12194440e-4)
_LOWEST, _HIGHEST = _F(-87.3), _F(88.3)


@nb.njit(cache=True, inline="always")
def exponential(x):
    """e**x of 16 floats, x limited to -87.3..88.3; relative error below 2e-7 (polynomial of Cephes' expf)."""
    x = minimum(splat_float(_HIGHEST), maximum(splat_float(_LOWEST), x))  # in this order NaN stays
    n = rounded(multiply(x, splat_float(_LOG2_E)))
    whole = to_floats(n)
    r = fused(whole, splat_float(_LN2_HIGH), x)
    r = fused(whole, splat_float(_LN2_LOW), r)
    p = splat_float(_F(1.9875691500e-4))
    p = fused(p, r, splat_float(_F(1.3981999507e-3)))
    p = fused(p, r, splat_float(_F(8.3334519073e-3)))
    p = fused(p, r, splat_float(_F(4.1665795894e-2)))
    p = fused(p, r, splat_float(_F(1.6666665459e-1)))
    p = fused(p, r, splat_float(_F(5.0000001201e-1)))
    p = add(fused(p, multiply(r, r), r), splat_float(_F(1.0)))
    return multiply(p, power_of_two(n))


@nb.njit(cache=True, inline="always")
def logistic(x):
    """1 / (1 + e**-x) of 16 floats."""
    one = splat_float(_F(1.0))
    return divide(one, add(one, exponential(subtract(zero_floats(), x))))


@nb.njit(cache=True, inline="always")
def hyperbolic_tangent(x):
    """tanh of 16 floats as 2 logistic(2x) - 1; absolute error below 2e-7."""
    return subtract(multiply(splat_float(_F(2.0)), logistic(add(x, x))), splat_float(_F(1.0)))


@nb.njit(cache=True, inline="always")
def _erf(x):
    """Error function, absolute error below 3e-7 (Abramowitz and Stegun 7.1.26)."""
    one, size = splat_float(_F(1.0)), absolute(x)
    t = divide(one, fused(size, splat_float(_F(0.3275911)), one))
    p = splat_float(_F(1.061405429))
    p = fused(p, t, splat_float(_F(-1.453152027)))
    p = fused(p, t, splat_float(_F(1.421413741)))
    p = fused(p, t, splat_float(_F(-0.284496736)))
    p = fused(p, t, splat_float(_F(0.254829592)))
    tail = multiply(multiply(p, t), exponential(subtract(zero_floats(), multiply(x, x))))
    sign = divide(x, maximum(size, splat_float(_F(1e-30))))
    return multiply(sign, subtract(one, tail))


@nb.njit(cache=True, inline="always")
def activated(kind, x):
    """SiLU, GELU (by erf or by tanh), ReLU, its square, tanh or the logistic function of 16 floats."""
    half, one = splat_float(_F(0.5)), splat_float(_F(1.0))
    if kind == SILU:
        return multiply(x, logistic(x))
    if kind == GELU:
        return multiply(multiply(half, x), add(one, _erf(multiply(x, splat_float(_F(0.7071067811865476))))))
    if kind == GELU_TANH:
        cube = multiply(multiply(x, x), x)
        inner = multiply(splat_float(_F(1.5957691216057308)), fused(splat_float(_F(0.044715)), cube, x))
        return multiply(x, logistic(inner))  # 0.5 (1 + tanh(y)) is the logistic of 2y
    if kind == TANH:
        return hyperbolic_tangent(x)
    if kind == SIGMOID:
        return logistic(x)
    positive = maximum(zero_floats(), x)  # in this order NaN stays
    return multiply(positive, positive) if kind == RELU2 else positive


@nb.njit(cache=True)
def activate(kind, source, gated, columns, target):
    """target = activation(source) * gated, or without the product where gated is 0. float32 [columns]."""
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        value = activated(kind, load_some(source + 4 * k, some))
        if gated != 0:
            value = multiply(value, load_some(gated + 4 * k, some))
        store_some(target + 4 * k, value, some)


@nb.njit(cache=True)
def clamped_gate(source, gated, columns, alpha, limit, target):
    """target = g logistic(alpha g) (u + 1), g: source, limit at most, u: gated within limit of 0. float32 [columns]."""
    most, least, one = splat_float(limit), splat_float(-limit), splat_float(_F(1.0))
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        gate = minimum(most, load_some(source + 4 * k, some))  # in this order NaN stays
        up = maximum(least, minimum(most, load_some(gated + 4 * k, some)))
        active = multiply(gate, logistic(multiply(gate, splat_float(alpha))))
        store_some(target + 4 * k, multiply(active, add(up, one)), some)


@nb.njit(cache=True)
def add_rows(a, b, columns, target):
    """target = a + b, float32 [columns]."""
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        store_some(target + 4 * k, add(load_some(a + 4 * k, some), load_some(b + 4 * k, some)), some)


@nb.njit(cache=True)
def scale_row(source, factor, columns, target):
    """target = source * factor, float32 [columns]."""
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        store_some(target + 4 * k, multiply(load_some(source + 4 * k, some), splat_float(factor)), some)


@nb.njit(cache=True)
def reorder_row(source, order, columns, target):
    """target[i] = source[order[i]], order int64 [columns]."""
    for k in range(columns):
        put_f32(target + 4 * k, get_f32(source + 4 * get_i64(order + 8 * k)))


@nb.njit(cache=True)
def rms_norm(source, scale, columns, epsilon, target):
    """target = source / sqrt(mean(source**2) + epsilon) * scale."""
    squares = zero_floats()
    for k in range(0, columns, 16):
        x = load_some(source + 4 * k, min(columns - k, 16))
        squares = fused(x, x, squares)
    factor = splat_float(_F(1.0) / np.sqrt(sum_floats(squares) / _F(columns) + epsilon))
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        value = multiply(multiply(load_some(source + 4 * k, some), factor), load_some(scale + 4 * k, some))
        store_some(target + 4 * k, value, some)


@nb.njit(cache=True)
def layer_norm(source, scale, bias, columns, epsilon, target):
    """target = (source - mean) / sqrt(variance + epsilon) * scale + bias; bias may be 0 for none."""
    total = zero_floats()
    for k in range(0, columns, 16):
        total = add(total, load_some(source + 4 * k, min(columns - k, 16)))
    mean = splat_float(sum_floats(total) / _F(columns))
    squares = zero_floats()
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        x = first_lanes(subtract(load_some(source + 4 * k, some), mean), some, zero_floats())
        squares = fused(x, x, squares)
    factor = splat_float(_F(1.0) / np.sqrt(sum_floats(squares) / _F(columns) + epsilon))
    for k in range(0, columns, 16):
        some = min(columns - k, 16)
        value = multiply(subtract(load_some(source + 4 * k, some), mean), factor)
        value = multiply(value, load_some(scale + 4 * k, some))
        if bias != 0:
            value = add(value, load_some(bias + 4 * k, some))
        store_some(target + 4 * k, value, some)


@nb.njit(cache=True)
def rotate_head(x, cos, sin, half):
    """Rotary positions in place on one head, half-split layout: pairs (i, i + half) by the angles of cos and sin."""
    for i in range(0, half, 16):
        some = min(half - i, 16)
        a, b = load_some(x + 4 * i, some), load_some(x + 4 * (i + half), some)
        c, s = load_some(cos + 4 * i, some), load_some(sin + 4 * i, some)
        store_some(x + 4 * i, subtract(multiply(a, c), multiply(b, s)), some)
        store_some(x + 4 * (i + half), add(multiply(b, c), multiply(a, s)), some)


@nb.njit(cache=True)
def _rotate_pairs(x, cos, sin, half):
    """The same where pairs are neighbours: (2 i, 2 i + 1)."""
    for i in range(half):
        a, b = get_f32(x + 8 * i), get_f32(x + 8 * i + 4)
        c, s = get_f32(cos + 4 * i), get_f32(sin + 4 * i)
        put_f32(x + 8 * i, a * c - b * s)
        put_f32(x + 8 * i + 4, b * c + a * s)


@nb.njit(cache=True)
def rotated_row(source, heads, head_dim, cos, sin, half, interleaved, target):
    """target = source with every head rotated, float32 [heads * head_dim]."""
    for k in range(0, heads * head_dim, 16):
        some = min(heads * head_dim - k, 16)
        store_some(target + 4 * k, load_some(source + 4 * k, some), some)
    for h in range(heads):
        if interleaved:
            _rotate_pairs(target + 4 * h * head_dim, cos, sin, half)
        else:
            rotate_head(target + 4 * h * head_dim, cos, sin, half)


@nb.njit(cache=True)
def dense_row(table, item_bytes, row, columns, target):
    """One row of a float32 or float16 table as float32."""
    at = table + row * columns * item_bytes
    for k in range(columns):
        put_f32(target + 4 * k, get_f32(at + 4 * k) if item_bytes == 4 else get_f16(at + 2 * k))


@nb.njit(cache=True, inline="always")
def _dense_part(at, item_bytes, k, columns):
    """16 weights of a dense row from column k on, zeros behind the last."""
    if item_bytes == 4:
        return load_some(at + 4 * k, columns - k)
    if k + 16 <= columns:
        return load_halfs(at + 2 * k)
    return load_some_halfs(at + 2 * k, columns - k)


@nb.njit(cache=True)
def sparse_rows(source, tokens, stride, starts, columns, weights, first, last, out, out_stride, bias, accumulate):
    """out[:, first:last] (= or +=) source times rows of a sparse matrix, plus bias.

    Row n has the entries starts[n] to starts[n + 1]; starts int64, columns int32, weights float32.
    """
    for n in range(first, last):
        begin, end = get_i64(starts + 8 * n), get_i64(starts + 8 * (n + 1))
        for t in range(tokens):
            x, value, where = source + 4 * t * stride, nb.float32(0.0), out + 4 * (t * out_stride + n)
            for i in range(begin, end):
                value += get_f32(x + 4 * nb.int64(get_i32(columns + 4 * i))) * get_f32(weights + 4 * i)
            if bias != 0:
                value += get_f32(bias + 4 * n)
            if accumulate:
                value += get_f32(where)
            put_f32(where, value)


@nb.njit(cache=True)
def dense_rows(source, tokens, stride, weights, item_bytes, columns, first, last, out, out_stride, bias, accumulate):
    """out[:, first:last] (= or +=) source [tokens, columns] times rows of a float32 or float16 matrix, plus bias."""
    for n in range(first, last):
        at = weights + n * columns * item_bytes
        for t in range(tokens):
            x, total = source + 4 * t * stride, zero_floats()
            for k in range(0, columns, 16):
                total = fused(load_some(x + 4 * k, columns - k), _dense_part(at, item_bytes, k, columns), total)
            value, where = sum_floats(total), out + 4 * (t * out_stride + n)
            if bias != 0:
                value += get_f32(bias + 4 * n)
            put_f32(where, value + get_f32(where) if accumulate else value)
