"""Gated delta nets: a causal convolution of some channels of one token, and the delta rule over columns of a state.

The state of a head lies as [columns / COLUMNS][key_dim][COLUMNS], zeros behind its last column. Columns do not depend
on each other. A block of them stays in the first cache while all tokens of a call pass it; the pass that changes it for
a token also reads it for the next one. That takes as many multiplications as the products of the chunked form
(arXiv 2412.06464), and the bits are those of one token after another: where calls begin and end changes nothing.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.elementwise import activated, exponential
from runtime_py.engine.layout.recurrent import COLUMNS, GROUP
from runtime_py.simd.vectors import (
    absolute,
    add,
    broadcast_float,
    divide,
    fused,
    get_f32,
    load_floats,
    load_some,
    maximum,
    multiply,
    put_f32,
    splat_float,
    store_floats,
    store_some,
    subtract,
    sum_floats,
    zero_floats,
)

_ROW = 4 * COLUMNS
_F = np.float32
_ODD = tuple(_F(1 / n) for n in range(17, 0, -2))


@nb.njit(cache=True, inline="always")
def _row(source, stride, past, columns, width, token, k, some):
    """16 channels of a token from k on; of those before the call (token < 0) as `past` has them."""
    if token < 0:
        return load_some(past + 4 * ((width - 1 + token) * columns + k), some)
    return load_some(source + 4 * (token * stride + k), some)


@nb.njit(cache=True)
def convolve_rows(source, stride, past, columns, width, kernel, bias, kind, token, first, last, target):
    """target[first:last] = activation(sum over j of kernel[j] * row(token - width + 1 + j) + bias).

    bias: 0 for none; kind: below 0 for no activation; source: float32 rows of all tokens; target: the token's row;
    past: float32 [width - 1, columns]; kernel: float32 [width, columns].
    """
    for k in range(first, last, 16):
        some = min(last - k, 16)
        total = zero_floats()
        for j in range(width):
            row = _row(source, stride, past, columns, width, token - width + 1 + j, k, some)
            total = fused(row, load_some(kernel + 4 * (j * columns + k), some), total)
        if bias != 0:
            total = add(total, load_some(bias + 4 * k, some))
        if kind >= 0:
            total = activated(kind, total)
        store_some(target + 4 * k, total, some)


@nb.njit(cache=True)
def keep_rows(source, stride, past, columns, width, tokens, first, last, present):
    """present[j, first:last] = row(tokens - width + 1 + j): the state behind `tokens` tokens."""
    for j in range(width - 1):
        for k in range(first, last, 16):
            some = min(last - k, 16)
            row = _row(source, stride, past, columns, width, tokens - width + 1 + j, k, some)
            store_some(present + 4 * (j * columns + k), row, some)


@nb.njit(cache=True)
def softplus(x):
    """ln(1 + e**x) of 16 floats: x above 0, and 2 artanh(y / (2 + y)) of y = e**-|x|, nine terms of its series."""
    y = exponential(subtract(zero_floats(), absolute(x)))
    s = divide(y, add(y, splat_float(_F(2.0))))
    square = multiply(s, s)
    p = zero_floats()
    for factor in _ODD:
        p = fused(p, square, splat_float(factor))
    return add(maximum(zero_floats(), x), multiply(multiply(splat_float(_F(2.0)), s), p))


@nb.njit(cache=True, inline="always")
def _parts(numbers):
    size = 4 * GROUP
    return numbers, numbers + size, numbers + 2 * size, numbers + 3 * size, numbers + 4 * size


@nb.njit(cache=True)
def token_numbers(
    query, key, stride, decay, decay_stride, beta, beta_stride, rate, bias, key_dim, epsilon, tokens, numbers
):  # fmt: skip
    """float32 [5, GROUP] of some tokens of a head: factor on the state, on what is new, 1 / |k|, of q, q k / |k|."""
    gate, step, short, scale, both = _parts(numbers)
    for t in range(tokens):
        put_f32(gate + 4 * t, get_f32(decay + 4 * t * decay_stride))
        put_f32(step + 4 * t, get_f32(beta + 4 * t * beta_stride))
        squares, lengths, products = zero_floats(), zero_floats(), zero_floats()
        for i in range(0, key_dim, 16):
            at = 4 * (t * stride + i)
            k, q = load_some(key + at, key_dim - i), load_some(query + at, key_dim - i)
            squares, lengths, products = fused(k, k, squares), fused(q, q, lengths), fused(q, k, products)
        of_key = _F(1.0) / np.sqrt(sum_floats(squares) + epsilon)
        put_f32(short + 4 * t, of_key)
        put_f32(scale + 4 * t, _F(1.0) / np.sqrt((sum_floats(lengths) + epsilon) * _F(key_dim)))
        put_f32(both + 4 * t, sum_floats(products) * of_key)
    x = add(load_some(gate, tokens), splat_float(bias))
    store_some(gate, exponential(multiply(softplus(x), splat_float(rate))), tokens)
    one = splat_float(_F(1.0))
    share = divide(one, add(one, exponential(subtract(zero_floats(), load_some(step, tokens)))))
    store_some(step, share, tokens)


@nb.njit(cache=True)
def _read(state, key_dim, key, query):
    """Sums of the rows of a block [key_dim, COLUMNS] times the key and times the query: two vectors of each."""
    ka, kb, qa, qb = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for i in range(key_dim):
        k, q = broadcast_float(key + 4 * i), broadcast_float(query + 4 * i)
        a, b = load_floats(state + _ROW * i), load_floats(state + _ROW * i + 64)
        ka, kb = fused(a, k, ka), fused(b, k, kb)
        qa, qb = fused(a, q, qa), fused(b, q, qb)
    return ka, kb, qa, qb


@nb.njit(cache=True)
def _change(before, after, key_dim, gate, key, new_a, new_b):
    """after = gate * before + key times `new`."""
    for i in range(key_dim):
        k = broadcast_float(key + 4 * i)
        store_floats(after + _ROW * i, fused(k, new_a, multiply(load_floats(before + _ROW * i), gate)))
        store_floats(after + _ROW * i + 64, fused(k, new_b, multiply(load_floats(before + _ROW * i + 64), gate)))


@nb.njit(cache=True)
def _change_and_read(before, after, key_dim, gate, key, new_a, new_b, next_key, next_query):
    """Both at once: the sums are those that _read() finds in `after` for the next token."""
    ka, kb, qa, qb = zero_floats(), zero_floats(), zero_floats(), zero_floats()
    for i in range(key_dim):
        k, n, q = broadcast_float(key + 4 * i), broadcast_float(next_key + 4 * i), broadcast_float(next_query + 4 * i)
        a = fused(k, new_a, multiply(load_floats(before + _ROW * i), gate))
        b = fused(k, new_b, multiply(load_floats(before + _ROW * i + 64), gate))
        store_floats(after + _ROW * i, a)
        store_floats(after + _ROW * i + 64, b)
        ka, kb = fused(a, n, ka), fused(b, n, kb)
        qa, qb = fused(a, q, qa), fused(b, q, qb)
    return ka, kb, qa, qb


@nb.njit(cache=True, inline="always")
def _outcome(held, read, value, gate, step, short, scale, both):
    """What a token adds under its key (to be multiplied by that as it is), and what it gets: 16 columns of each."""
    delta = multiply(step, subtract(value, multiply(multiply(gate, short), held)))
    out = multiply(scale, fused(both, delta, multiply(gate, read)))
    return multiply(delta, short), out


@nb.njit(cache=True)
def delta_block(before, after, query, key, value, stride, key_dim, columns, tokens, numbers, out, out_stride):
    """`tokens` tokens (GROUP at most) pass one block of a head's state, of which `columns` are there.

    query, key, value, out: float32 rows of the head, the latter two from the block's first column on. numbers: of
    token_numbers(). before, after: float32 [key_dim, COLUMNS], the same or apart.
    """
    ka, kb, qa, qb = _read(before, key_dim, key, query)
    for t in range(tokens):
        gate_at, step_at, short_at, scale_at, both_at = _parts(numbers + 4 * t)
        gate, step, short = broadcast_float(gate_at), broadcast_float(step_at), broadcast_float(short_at)
        scale, both = broadcast_float(scale_at), broadcast_float(both_at)
        at, to = value + 4 * t * stride, out + 4 * t * out_stride
        new_a, out_a = _outcome(ka, qa, load_some(at, columns), gate, step, short, scale, both)
        new_b, out_b = _outcome(kb, qb, load_some(at + 64, columns - 16), gate, step, short, scale, both)
        store_some(to, out_a, columns)
        store_some(to + 64, out_b, columns - 16)
        own, following = key + 4 * t * stride, 4 * (t + 1) * stride
        if t + 1 < tokens:
            ka, kb, qa, qb = _change_and_read(
                before, after, key_dim, gate, own, new_a, new_b, key + following, query + following
            )
        else:
            _change(before, after, key_dim, gate, own, new_a, new_b)
        before = after
