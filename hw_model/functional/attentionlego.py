"""AttentionLego's arithmetic (arXiv 2401.11459 and its RTL): table softmax without maximum, product with its ADC.

The softmax follows the RTL bit for bit. The product does not: the RTL multiplies unsigned numbers, wraps its sums and
reads some inputs twice; here it is what its datapath can do without those defects: signed numbers, 4-bit input slices,
16 inputs a conversion, an ADC of `adc_bits` that rounds and saturates, with a selectable least significant bit.
"""

from __future__ import annotations

import numpy as np

LANES = 16  # inputs that are summed in one conversion


def softmax_table() -> np.ndarray:
    """exp(x) of the 256 codes, x = -1 + u / 128, Q16.16: uint32 [256]."""
    u = np.arange(256)
    return np.floor(np.exp(-1 + 2 * u / 256) * 2**16).astype(np.uint32)


_TABLE = softmax_table().astype(np.int64)


def softmax(codes: np.ndarray) -> np.ndarray:
    """Probabilities in 1/256 along the last axis: uint8 codes -> int64, floor(e / (sum >> 8)) as the RTL divides."""
    e = _TABLE[codes]
    return e // (e.sum(axis=-1, keepdims=True) >> 8)


def encode_scores(scores: np.ndarray, limit: float) -> np.ndarray:
    """Scores within [-limit, limit) as codes of [-1, 1): uint8; what lies outside saturates."""
    return np.clip(np.floor(scores / limit * 128) + 128, 0, 255).astype(np.uint8)


def product(x: np.ndarray, weights: np.ndarray, adc_bits: int = 6, lsb: int = 256) -> np.ndarray:
    """x int8 [T, K] times weights int8 [N, K] transposed -> int64 [T, N], through the converters.

    Each conversion sums 16 products of a 4-bit slice (the upper slice signed) and a weight, rounds to a multiple of
    `lsb` and saturates to `adc_bits` signed bits. lsb 1024 clips nothing at 6 bits: 16 * 15 * 128 = 30,720. (Rounding
    down, as the RTL truncates, would add half an lsb times the number of conversions to every sum.)
    """
    tokens, columns = x.shape
    groups = -(-columns // LANES)
    padded = np.zeros((tokens, groups * LANES), np.int64)
    padded[:, :columns] = x
    wide = np.zeros((weights.shape[0], groups * LANES), np.int64)
    wide[:, :columns] = weights
    w = wide.reshape(-1, groups, LANES).transpose(1, 2, 0).astype(np.float64)
    top = 2 ** (adc_bits - 1)
    total = np.zeros((tokens, weights.shape[0]), np.int64)
    for part, place in ((padded & 15, 1), (padded >> 4, 16)):
        sums = part.reshape(tokens, groups, LANES).transpose(1, 0, 2).astype(np.float64) @ w
        codes = np.clip(np.rint(sums / lsb), -top, top - 1)
        total += place * lsb * codes.sum(axis=0).astype(np.int64)
    return total
