"""The numbers of one term of an adapter: two factors of 8, 16 or 32 bits, and of a bottleneck two biases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.adapters.sites import PRODUCT
from export.contract.errors import InputError

BITS = (8, 16, 32)
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.int8), 16: np.dtype(np.float16), 32: np.dtype(np.float32)}
_LARGEST_HALF = 65504


@dataclass(frozen=True, eq=False)
class Factors:
    """One term: y += (x @ a^T) @ b; with biases y += f(x @ a^T + biases[0]) @ b + biases[1].

    a [rank, columns] and b [rank, rows] of one dtype. scales: float32 [rank] of the rows of a and of b where those are
    int8; else None. biases: float32 [rank] and [rows] of a bottleneck; f is its adapter's activation. place: what x and
    y are (sites.py).
    """

    a: np.ndarray
    b: np.ndarray
    scales: tuple[np.ndarray, np.ndarray] | None = None
    biases: tuple[np.ndarray, np.ndarray] | None = None
    place: str = PRODUCT

    @property
    def rank(self) -> int:
        return len(self.a)

    def floats(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b as float32: what they stand for."""
        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        if self.scales is None:
            return a, b
        return a * self.scales[0][:, None], b * self.scales[1][:, None]

    def nbytes(self) -> int:
        parts = (*(self.scales or ()), *(self.biases or ()))
        return self.a.nbytes + self.b.nbytes + sum(part.nbytes for part in parts)


def factors(a: np.ndarray, b: np.ndarray, bits: int, where: str) -> Factors:
    """Store float32 a [rank, columns] and b [rank, rows], b with the scale multiplied in.

    A power of two goes from each row of a to that of b, so that neither leaves float16's range alone: exact. Raises
    InputError on numbers that are not finite or that float16 cannot hold.
    """
    _check_finite(where, a, b)
    a, b = a.astype(np.float32), b.astype(np.float32)
    largest = np.abs(a).max(axis=1, initial=0.0)
    other = np.abs(b).max(axis=1, initial=0.0)
    dead = (largest == 0) | (other == 0)  # a row that adds nothing
    a, b = np.where(dead[:, None], np.float32(0), a), np.where(dead[:, None], np.float32(0), b)
    # frexp: largest = m * 2^e, 0.5 <= m < 1. Both rows get about the same size.
    shift = (np.frexp(other)[1] - np.frexp(largest)[1]) // 2
    shift[dead] = 0
    return _stored(np.ldexp(a, shift[:, None]), np.ldexp(b, -shift[:, None]), bits, where)


def bottleneck(
    a: np.ndarray, b: np.ndarray, biases: tuple[np.ndarray, np.ndarray], place: str, bits: int, where: str
) -> Factors:
    """Store float32 a [rank, columns], b [rank, rows] and the biases of both, [rank] and [rows].

    Nothing moves from one factor to the other, because an activation stands between them. Biases stay float32. Raises
    InputError as factors() does.
    """
    _check_finite(where, a, b, *biases)
    stored = _stored(a.astype(np.float32), b.astype(np.float32), bits, where)
    return replace(stored, biases=(biases[0].astype(np.float32), biases[1].astype(np.float32)), place=place)


def _check_finite(where: str, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(f"{where}: holds numbers that are not finite")


def _stored(a: np.ndarray, b: np.ndarray, bits: int, where: str) -> Factors:
    if bits == 8:
        (qa, sa), (qb, sb) = _as_int8(a), _as_int8(b)
        return Factors(qa, qb, (sa, sb))
    if bits == 16 and max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0))) > _LARGEST_HALF:
        raise InputError(f"{where}: holds numbers that float16 cannot; add it with --bits 32")
    return Factors(a.astype(DTYPES[bits]), b.astype(DTYPES[bits]))


def _as_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [rank, n] and one float32 scale for each row."""
    scale = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(rows / safe[:, None]).clip(-127, 127).astype(np.int8), safe
