"""A gated short convolution over some channels of one token, in 16 float32 lanes, and the state behind a call."""

from __future__ import annotations

import numba as nb

from runtime_py.simd.vectors import fused, load_some, multiply, store_some, zero_floats


@nb.njit(cache=True, inline="always")
def _product(inner, values, stride, past, columns, width, token, k, some):
    """inner * values of a token, 16 channels from k on; of those before the call (token < 0) as `past` holds them."""
    if token < 0:
        return load_some(past + 4 * ((width + token) * columns + k), some)
    at = 4 * (token * stride + k)
    return multiply(load_some(inner + at, some), load_some(values + at, some))


@nb.njit(cache=True)
def convolve(inner, values, outer, stride, past, columns, width, kernel, bias, token, first, last, target):
    """target[first:last] = outer * (sum over j of kernel[j] * product(token - width + 1 + j) + bias), for one token.

    inner, values, outer: float32 rows of all tokens, `stride` floats apart; target: the token's row. past and kernel:
    float32 [width, columns]. bias may be 0 for none.
    """
    for k in range(first, last, 16):
        some = min(last - k, 16)
        total = load_some(bias + 4 * k, some) if bias != 0 else zero_floats()
        for j in range(width):
            product = _product(inner, values, stride, past, columns, width, token - width + 1 + j, k, some)
            total = fused(product, load_some(kernel + 4 * (j * columns + k), some), total)
        gate = load_some(outer + 4 * (token * stride + k), some)
        store_some(target + 4 * k, multiply(gate, total), some)


@nb.njit(cache=True)
def keep_products(inner, values, stride, past, columns, width, tokens, first, last, present):
    """present[j, first:last] = product(tokens - width + j): the state behind `tokens` tokens."""
    for j in range(width):
        for k in range(first, last, 16):
            some = min(last - k, 16)
            product = _product(inner, values, stride, past, columns, width, tokens - width + j, k, some)
            store_some(present + 4 * (j * columns + k), product, some)
