"""The ai.athena operator of vector codebooks: names, attributes, shapes and a numpy reference. Numpy only.

VectorCodebookMatMul(X, codes, codebook, scale) -> Y = X @ W^T
    X        float32 [..., K]
    codes    uint8 [N, books, row_bytes(J, bits)], J = ceil(K / dimension), layout in export/contract/packing.py
    codebook int8 [ceil(N / rows_per_codebook), books, 2**bits, dimension]
    scale    float16 or float32 [ceil(N / rows_per_scale), 1]
    W[n, k] = scale[n // rows_per_scale] * sum over m of codebook[n // rows_per_codebook, m, code[n, m, j], i]
              with j = k // dimension, i = k % dimension

One code stands for `dimension` neighbouring weights. Several books add up (AQLM, arXiv 2401.06118); the largest
magnitudes of the books, added over the books, stay within 127, so that every sum fits in 8 bits and the matrix can be
expanded to one of 8-bit codes exactly (`expanded`). Attributes, all required: bits (1..8), K, N, dimension, books,
rows_per_codebook, rows_per_scale.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from export.contract.formats.codebook import CodebookLayout, check_parts
from export.contract.packing import row_bytes, unpack

VECTOR_MATMUL = "VectorCodebookMatMul"
SUM_LIMIT = 127


@dataclass(frozen=True)
class VectorLayout:
    """The attributes of one matrix W [N, K] of vector codes."""

    bits: int
    K: int
    N: int
    dimension: int
    books: int = 1
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        limits = {"bits": 8, "dimension": 64, "books": 16}
        for name in self.__dataclass_fields__:
            high = limits.get(name, 2**31 - 1)
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be 1 to {high}, not {getattr(self, name)}")
        if int(np.prod(self.codebook_shape, dtype=object)) >= 2**31:  # the function body counts entries in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def vectors(self) -> int:
        """J, codes along a row of one book."""
        return -(-self.K // self.dimension)

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        return self.N, self.books, row_bytes(self.vectors, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int, int, int]:
        return -(-self.N // self.rows_per_codebook), self.books, 1 << self.bits, self.dimension

    @property
    def scale_shape(self) -> tuple[int, int]:
        return -(-self.N // self.rows_per_scale), 1

    def attributes(self) -> dict[str, int]:
        """ONNX node attributes, by name."""
        return asdict(self)

    def check(self, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
        """Raise ValueError when an array does not have the dtype, shape or range that the contract asks for."""
        check_parts(self, codes, codebook, scale)
        if book_sums(codebook).max(initial=0) > SUM_LIMIT:
            raise ValueError(f"the books of codebook add up to more than {SUM_LIMIT}")

    def dequantized(self, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The float32 [N, K] matrix that packed codes, int8 codebook and scale stand for."""
        self.check(codes, codebook, scale)
        rows = np.arange(self.N) // self.rows_per_scale
        return levels(self, codes, codebook, slice(None)).astype(np.float32) * scale[rows].astype(np.float32)

    def widened(self) -> CodebookLayout:
        """The layout of the same matrix as 8-bit codes of one codebook, -128..127 in order."""
        return CodebookLayout(8, self.K, self.N, 0, self.N, self.rows_per_scale)

    def expanded(self, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        """The codes uint8 [N, K] of the same matrix in the form of widened(), exactly."""
        out = np.empty((self.N, self.K), np.uint8)
        step = max(1, (1 << 24) // max(1, self.K * self.books))
        for first in range(0, self.N, step):
            rows = slice(first, min(first + step, self.N))
            out[rows] = (levels(self, codes, codebook, rows) + 128).astype(np.uint8)
        return out


def book_sums(codebook: np.ndarray) -> np.ndarray:
    """Largest magnitude that the sum over books can reach, int [chunks]: what has to stay within SUM_LIMIT."""
    return np.abs(codebook.astype(np.int64)).max(axis=(2, 3)).sum(axis=1)


def unpack_codes(layout: VectorLayout, codes: np.ndarray) -> np.ndarray:
    """Packed codes -> uint8 [N, books, J]."""
    flat = unpack(codes.reshape(-1, codes.shape[-1]), layout.bits, layout.vectors)
    return flat.reshape(*codes.shape[:2], layout.vectors)


def levels(layout: VectorLayout, codes: np.ndarray, codebook: np.ndarray, rows: slice) -> np.ndarray:
    """Integer weights int16 [rows, K]: sums of codebook entries (slow, obvious reference)."""
    code = unpack_codes(layout, codes[rows]).astype(np.intp)
    book_row = np.arange(layout.N)[rows] // layout.rows_per_codebook
    total = np.zeros((len(code), layout.vectors, layout.dimension), np.int16)
    for m in range(layout.books):
        total += codebook[book_row[:, None], m, code[:, m]]
    return total.reshape(len(code), -1)[:, : layout.K]
