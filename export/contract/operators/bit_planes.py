"""Products of p-bit weights and q-bit activations, plane by plane: the operator BitPlaneMatMul. Numpy only.

    sum_k w[k] a[k] = sum over planes s, t of 2**(s+t) popcount(W_s & A_t)                       codes from zero on
    sum_k w[k] a[k] = sum over planes s, t of 2**(s+t) (2 popcount(~(W_s ^ A_t)) - K)            bits that are +1 and -1

ABQ-LLM (arXiv 2408.08554) computes with the first, its zero points corrected by sums of rows and columns; bipolar
integers (arXiv 2409.17870, APT-LLM, arXiv 2508.19087) with the second: every bit of a code u means +-1, so that it
stands for the odd number 2u - (2**bits - 1) and needs neither sign nor zero point.

BitPlaneMatMul(X, planes, zero, scale) -> Y float32 [..., N]
    X       float32 [..., K]
    planes  uint8 [p, N, ceil(K / 8)], the lowest plane first, the first column in the lowest bit, zeros behind the last
    zero    float32 [N], whole numbers: the code that stands for nothing; not used where bipolar is 1
    scale   float32 [N]
    Attributes: K, N, p (planes), q (bits of activations), bipolar.
    Activations have a unit (and zero point) for each token, all in float32:
        bipolar 0: unit = (high - low) / (2**q - 1), low = min(X, 0), high = max(X, 0); z = round(-low / unit);
                   u = clip(round(X / unit) + z, 0, 2**q - 1); S = sum (w - zero)(u - z)
        bipolar 1: unit = max |X| / (2**q - 1); u = clip(round((X / unit + 2**q - 1) / 2), 0, 2**q - 1);
                   S = sum (2w - (2**p - 1))(2u - (2**q - 1))
    rounding is half to even; a token of zeros has unit 1. Y = float32(S) * unit * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BIT_PLANE_MATMUL = "BitPlaneMatMul"
_LARGEST = 2**31 - 1
_ONES = np.array([bin(value).count("1") for value in range(256)], np.uint8)


@dataclass(frozen=True)
class BitPlaneLayout:
    """Attributes of one BitPlaneMatMul. Raises ValueError or TypeError where they are out of range."""

    K: int
    N: int
    p: int
    q: int
    bipolar: int

    def __post_init__(self) -> None:
        for name, low, high in (("K", 1, _LARGEST), ("N", 1, _LARGEST), ("p", 1, 8), ("q", 1, 8), ("bipolar", 0, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {value}")

    @staticmethod
    def of(attributes: Mapping[str, Any]) -> BitPlaneLayout:
        """From untrusted attributes. Raises KeyError, TypeError or ValueError."""
        return BitPlaneLayout(**{name: attributes[name] for name in BitPlaneLayout.__dataclass_fields__})

    def attributes(self) -> dict[str, int]:
        return asdict(self)

    def check(self, planes: np.ndarray, zero: np.ndarray, scale: np.ndarray) -> None:
        """Raises ValueError where an array is not what the operator asks for."""
        shape = (self.p, self.N, -(-self.K // 8))
        if planes.dtype != np.uint8 or planes.shape != shape:
            raise ValueError(f"planes are {planes.dtype.name} {list(planes.shape)}, expected uint8 {list(shape)}")
        if self.K % 8 and (planes[..., -1] >> (self.K % 8)).any():
            raise ValueError("planes have bits behind the last column")
        for name, array in (("zero", zero), ("scale", scale)):
            if array.dtype != np.float32 or array.shape != (self.N,) or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {self.N} finite numbers of float32")
        if (zero != np.rint(zero)).any() or np.abs(zero).max() > 2**self.p:
            raise ValueError(f"zero must be whole numbers of {self.p} bits")


def planes_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., K] below 2**bits as packed planes uint8 [bits, ..., ceil(K / 8)].

    Raises ValueError where a code has more bits.
    """
    codes = np.asarray(codes)
    if codes.size and (codes.min() < 0 or codes.max() >= 1 << bits):
        raise ValueError(f"codes must be 0 to {(1 << bits) - 1}")
    shifts = np.arange(bits).reshape(-1, *[1] * codes.ndim)
    return np.packbits((codes[None].astype(np.uint8) >> shifts) & 1, axis=-1, bitorder="little")


def codes_of(planes: np.ndarray, columns: int) -> np.ndarray:
    """Inverse of planes_of: int64 [..., K]."""
    bits = np.unpackbits(planes, axis=-1, bitorder="little")[..., :columns].astype(np.int64)
    return (bits << np.arange(len(planes)).reshape(-1, *[1] * (planes.ndim - 1))).sum(axis=0)


def plane_counts(weights: np.ndarray, activations: np.ndarray, columns: int, bipolar: bool) -> np.ndarray:
    """What each pair of planes adds before its power of two: planes [p, N, B] and [q, T, B] to int64 [p, q, T, N].

    The number of common ones; bipolar: of equal bits less that of others, over `columns` columns.
    """
    w, a = weights[:, None, None], activations[None, :, :, None]
    if not bipolar:
        return _ONES[w & a].sum(axis=-1, dtype=np.int64)  # type: ignore[no-any-return]
    return columns - 2 * _ONES[w ^ a].sum(axis=-1, dtype=np.int64)  # type: ignore[no-any-return]


def plane_sums(weights: np.ndarray, activations: np.ndarray, columns: int, bipolar: bool = False) -> np.ndarray:
    """The integer product by planes [p, N, B] and [q, T, B]: int64 [T, N]."""
    counts = plane_counts(weights, activations, columns, bipolar)
    powers = np.arange(counts.shape[0])[:, None] + np.arange(counts.shape[1])
    return (counts << powers[..., None, None]).sum(axis=(0, 1))  # type: ignore[no-any-return]


def without_zero_points(
    sums: np.ndarray, w: np.ndarray, w_zero: np.ndarray, a: np.ndarray, a_zero: np.ndarray
) -> np.ndarray:
    """From sums of codes [T, N] to those of w - w_zero and a - a_zero: codes [N, K], [N], [T, K], [T]; int64 [T, N]."""
    columns, by_row, by_token = w.shape[1], w.sum(axis=1), a.sum(axis=1)
    return sums - a_zero[:, None] * by_row - by_token[:, None] * w_zero + columns * a_zero[:, None] * w_zero  # type: ignore[no-any-return]


def odd_numbers(codes: np.ndarray, bits: int) -> np.ndarray:
    """What bipolar codes stand for."""
    return 2 * np.asarray(codes, np.int64) - ((1 << bits) - 1)


def signed_sums(sums: np.ndarray, w: np.ndarray, a: np.ndarray) -> np.ndarray:
    """From the product of 2w + 1 and 2a + 1 (bipolar) to that of signed w [N, K] and a [T, K]: int64 [T, N]."""
    return (sums - 2 * a.sum(axis=1)[:, None] - 2 * w.sum(axis=1) - w.shape[1]) // 4  # type: ignore[no-any-return]


def quantized(x: np.ndarray, layout: BitPlaneLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes int64 [T, K] of float32 activations [T, K], their zero points int64 [T] and units float32 [T]."""
    top = np.float32((1 << layout.q) - 1)
    if layout.bipolar:
        size = np.abs(x).max(axis=1)
        unit = np.where(size > 0, size / top, np.float32(1)).astype(np.float32)
        codes = np.rint((x / unit[:, None] + top) / np.float32(2))
        return np.clip(codes, 0, top).astype(np.int64), np.zeros(len(x), np.int64), unit
    low, high = np.minimum(x.min(axis=1), np.float32(0)), np.maximum(x.max(axis=1), np.float32(0))
    unit = np.where(high > low, (high - low) / top, np.float32(1)).astype(np.float32)
    zero = np.rint(-low / unit)
    return np.clip(np.rint(x / unit[:, None]) + zero[:, None], 0, top).astype(np.int64), zero.astype(np.int64), unit


def bit_plane_matmul(
    x: np.ndarray, layout: BitPlaneLayout, planes: np.ndarray, zero: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Reference of BitPlaneMatMul: float32 [..., N]. Raises ValueError as BitPlaneLayout.check does."""
    layout.check(planes, zero, scale)
    a, a_zero, unit = quantized(x.reshape(-1, layout.K).astype(np.float32), layout)
    sums = plane_sums(planes, planes_of(a, layout.q), layout.K, bool(layout.bipolar))
    if not layout.bipolar:
        sums = without_zero_points(sums, codes_of(planes, layout.K), zero.astype(np.int64), a, a_zero)
    out = sums.astype(np.float32) * unit[:, None] * scale
    return out.reshape(*x.shape[:-1], layout.N)
