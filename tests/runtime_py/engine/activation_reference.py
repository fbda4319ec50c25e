"""Activations as integers, one scale for each token and 256 columns, every rounding as kernels/quantize.py has it."""

from __future__ import annotations

import numpy as np

from runtime_py.engine.kernels.quantize import _LIMIT

F = np.float32


def tree(lanes: np.ndarray) -> np.ndarray:
    """float32 [..., 16] to [...], halves added again and again."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _limits(size: np.ndarray) -> np.ndarray:
    """Squares beyond which a column is an outlier, float32 [T, 1], of a block's magnitudes [T, up to 256]."""
    with np.errstate(over="ignore"):
        squares = size * size
    padded = np.pad(squares, ((0, 0), (0, -size.shape[1] % 16)))
    lanes = np.zeros((len(size), 16), np.float32)
    for k in range(0, padded.shape[1], 16):
        with np.errstate(over="ignore", invalid="ignore"):
            lanes += padded[:, k : k + 16]
    return (tree(lanes) * (_LIMIT * _LIMIT / F(size.shape[1])))[:, None]


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers float32 [T, K] and scales float32 [T, blocks of 256 columns]; NaN where a number is not finite."""
    codes, scales = np.zeros(x.shape, np.float32), []
    for start in range(0, x.shape[1], 256):
        part = x[:, start : start + 256]
        size = np.abs(part)
        top, limit = size.max(axis=1, keepdims=True) + (part - part).sum(axis=1, keepdims=True), _limits(size)
        with np.errstate(over="ignore"):
            rest = np.where(size * size <= limit, size, F(0)).max(axis=1, keepdims=True)
            outliers = (top * top > limit) & (top >= F(2.0**-50))
        unit = np.where(outliers, np.maximum(rest, top * F(1 / 256)), top)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(unit > 0, F(127) / unit, F(0))
        codes[:, start : start + 256] = np.rint(part * inverse)
        scales.append((unit * F(1 / 127))[:, 0])
    return codes, np.stack(scales, axis=1)


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [T, K] and scales float32 [T, blocks of 256 columns] of finite numbers."""
    codes, scales = rounded(x)
    return codes.astype(np.int64), scales


def values(x: np.ndarray) -> np.ndarray:
    """What the integers stand for, float64 [T, K]."""
    codes, scales = quantized(x)
    return codes * np.repeat(scales, 256, axis=1)[:, : x.shape[1]].astype(np.float64)


def with_outliers(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x float32 [T, K] with a few numbers of every row made up to 100,000 times as large, in most of the rows."""
    out = x.copy()
    for t in np.flatnonzero(rng.random(len(x)) < 0.7):
        some = rng.integers(0, x.shape[1], rng.integers(0, 6))
        out[t, some] *= np.exp2(rng.uniform(0, 17, len(some))).astype(np.float32)
    return out
