"""RAP's arithmetic (arXiv 2411.14733, also listed as FLARE): shift-parse, integer softmax, GELU and norms, and the
ones-splitting product with its converters and an optional noise model.

The paper gives the mechanisms and no formulas; these are a workable set with the properties it claims: no floating
point, no division, powers of two between layers.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

_RECIPROCAL = np.array([round(2**15 / (1 + (i + 0.5) / 16)) for i in range(16)], np.int64)  # of 1 + (i + 1/2) / 16
_ROOT = np.array(  # 2**15 / sqrt(m), m = (16 + i + 1/2) / 16 times 1, then times 2
    [round(2**15 / math.sqrt((1 + (i + 0.5) / 16) * odd)) for odd in (1, 2) for i in range(16)], np.int64
)


def bit_length(x: np.ndarray) -> np.ndarray:
    """Bits of integers from 0 to 2**62: int64, 0 for 0."""
    x = np.asarray(x, np.int64)
    found = np.zeros(x.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        large = (x >> found) >= (1 << step)
        found += np.where(large, step, 0)
    return found + (x > 0)


def shift_parse(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers to `bits` bits by one arithmetic shift per vector (last axis): (values, shift [..., 1]).

    The shift is the least that fits the largest magnitude; values round down.
    """
    x = np.asarray(x, np.int64)
    largest = bit_length(np.where(x >= 0, x, ~x)).max(axis=-1, keepdims=True)
    shift = np.maximum(largest + 1 - bits, 0)
    return x >> shift, shift


def exponentials(x: np.ndarray, fraction_bits: int, guard_bits: int) -> np.ndarray:
    """exp(x - max) of integers with scale 2**-fraction_bits along the last axis, by shifts and adds."""
    z = np.asarray(x, np.int64) - np.max(x, axis=-1, keepdims=True)
    y = z + (z >> 1) - (z >> 4)  # log2(e) as 1.4375
    n = -(y >> fraction_bits)
    f = y + (n << fraction_bits)
    return (((1 << fraction_bits) + f) << guard_bits) >> np.minimum(n, 62)


def softmax(x: np.ndarray, fraction_bits: int = 6, guard_bits: int = 16) -> np.ndarray:
    """Probabilities in 2**-15 along the last axis: integers; the reciprocal comes from a table, no division."""
    e = exponentials(x, fraction_bits, guard_bits)
    total = e.sum(axis=-1, keepdims=True)
    length = bit_length(total)
    entry = ((total << 4) >> (length - 1)) & 15
    return (e * _RECIPROCAL[entry]) >> (length - 1)


def sigmoid(x: np.ndarray, fraction_bits: int) -> np.ndarray:
    """1 / (1 + exp(-x)) in 2**-15, x integers with scale 2**-fraction_bits."""
    x = np.asarray(x, np.int64)
    pair = np.stack([x, np.zeros_like(x)], axis=-1)
    return softmax(pair, fraction_bits)[..., 0]


def silu(x: np.ndarray, fraction_bits: int) -> np.ndarray:
    """x * sigmoid(x), at x's scale."""
    return (np.asarray(x, np.int64) * sigmoid(x, fraction_bits)) >> 15


def gelu(x: np.ndarray, fraction_bits: int) -> np.ndarray:
    """x * sigmoid(1.702 x), at x's scale; 1.702 as 1 + 1/2 + 1/4 - 1/16 + 1/64."""
    x = np.asarray(x, np.int64)
    scaled = x + (x >> 1) + (x >> 2) - (x >> 4) + (x >> 6)
    return (x * sigmoid(scaled, fraction_bits)) >> 15


def inverse_root(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 / sqrt(x) of positive integers as (mantissa in 2**-15, shift): mantissa * 2**-15 * 2**-shift.

    Leading one, a table of 32 entries, one Newton step y (3 - m y^2) / 2 in integers.
    """
    x = np.asarray(x, np.int64)
    place = bit_length(x) - 1
    mantissa = np.where(place >= 15, x >> np.maximum(place - 15, 0), x << np.maximum(15 - place, 0))  # 1..2 in 2**-15
    odd = place & 1
    y = _ROOT[((mantissa >> 11) & 15) + 16 * odd]
    m = mantissa << odd
    square = (y * y) >> 15
    y = (y * ((3 << 15) - ((m * square) >> 15))) >> 16
    return y, place >> 1


def rms_norm(x: np.ndarray) -> tuple[np.ndarray, int]:
    """x / sqrt(mean(x^2)) along the last axis, integers of up to 16 bits: (values in 2**-12, 12); scale-free."""
    x = np.asarray(x, np.int64)
    mean = np.maximum((x * x).sum(axis=-1, keepdims=True) // x.shape[-1], 1)  # a constant division: a 16-bit reciprocal
    mantissa, shift = inverse_root(mean)
    return (x * mantissa) >> (shift + 3), 12


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, int]:
    """(x - mean) / deviation along the last axis, as rms_norm."""
    x = np.asarray(x, np.int64)
    return rms_norm(x - x.sum(axis=-1, keepdims=True) // x.shape[-1])


def split_ones(plane: np.ndarray, active: int) -> list[list[int]]:
    """Indices of the ones of a bit plane, in runs of at most `active`: the word lines of each conversion."""
    ones = np.flatnonzero(plane).tolist()
    return [ones[i : i + active] for i in range(0, len(ones), active)]


def is_lossless(active: int, adc_bits: int, cell_bits: int = 1) -> bool:
    """Whether a conversion of `active` cells fits the converter."""
    return 2**adc_bits - 1 >= active * (2**cell_bits - 1)


def product(
    x: np.ndarray, weights: np.ndarray, active: int, adc_bits: int, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """x int8 [T, K] times weights int8 [N, K] transposed -> int64 [T, N], conversion by conversion.

    Both are two's complement; each bit of a weight is a column, at most `active` ones of an input bit plane drive a
    conversion, whose result is rounded after Gaussian noise of `noise` * sqrt(rows) and clipped to 2**adc_bits - 1.
    """
    return _product(
        np.ascontiguousarray(x, np.int8), np.ascontiguousarray(weights, np.int8), active, 2**adc_bits - 1, noise, seed
    )


@nb.njit
def _product(x, weights, active, top, noise, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    tokens, columns = x.shape
    out = np.zeros((tokens, weights.shape[0]), np.int64)
    ones = np.empty(columns, np.int64)
    for t in range(tokens):
        for b in range(8):
            count = 0
            for k in range(columns):
                if (x[t, k] >> b) & 1:
                    ones[count] = k
                    count += 1
            place = -(1 << b) if b == 7 else 1 << b
            for first in range(0, count, active):
                last = min(first + active, count)
                for n in range(weights.shape[0]):
                    for j in range(8):
                        total = 0
                        for i in range(first, last):
                            total += (weights[n, ones[i]] >> j) & 1
                        if noise > 0.0:
                            total = int(np.rint(total + np.random.normal(0.0, noise * math.sqrt(last - first))))
                            total = max(total, 0)
                        total = min(total, top)
                        out[t, n] += place * (-(1 << j) if j == 7 else 1 << j) * total
    return out


def noise_variance(x: np.ndarray, active: int, noise: float) -> np.ndarray:
    """Variance of product()'s error from noise, float64 [T, 1], for lossless converters.

    Each conversion errs by a rounded Gaussian; columns and planes add with the squares of their places.
    """
    planes = np.asarray(x, np.int8).view(np.uint8)[..., None] >> np.arange(8) & 1
    counts = planes.sum(axis=1)  # [T, 8]
    column = (4.0 ** np.arange(8)).sum()
    sizes = np.arange(active + 1)
    each = np.array([_rounded_variance(noise * math.sqrt(size)) for size in sizes])
    full, rest = counts // active, counts % active
    return column * ((full * each[active] + each[rest]) * 4.0 ** np.arange(8)).sum(axis=1, keepdims=True)


def _rounded_variance(sigma: float) -> float:
    """Variance of round(N(0, sigma))."""
    if sigma == 0:
        return 0.0

    def below(value: float) -> float:
        return 0.5 * math.erfc(-value / (sigma * math.sqrt(2)))

    reach = max(math.ceil(8 * sigma), 1)
    return sum(2 * k * k * (below(k + 0.5) - below(k - 0.5)) for k in range(1, reach + 1))
