"""The format `vectors`: one code stands for several neighbouring weights, several books add up. Numpy only.

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

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from export.contract.body import Body, Value
from export.contract.body_parts import all_rows, entries, one_dimension, row_scales, unpacked
from export.contract.formats.base import FLOATS, LARGEST, Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout, all_levels, level_layout
from export.contract.packing import row_bytes, unpack

VECTOR_MATMUL = "VectorCodebookMatMul"
SUM_LIMIT = 127
_AT_ONCE = 1 << 24  # weights that are expanded together


@dataclass(frozen=True)
class VectorLayout(Layout):
    """The attributes of one matrix W [N, K] of vector codes."""

    SCHEME: ClassVar[str] = "vectors"
    OPERATOR: ClassVar[str] = VECTOR_MATMUL
    KEPT: ClassVar = ("scale",)
    LIMITS: ClassVar = {"bits": 8, "dimension": 64, "books": 16}

    dimension: int
    books: int = 1
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(np.prod(self.codebook_shape, dtype=object)) > LARGEST:  # the function body counts entries in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def vectors(self) -> int:
        """J, codes along a row of one book."""
        return chunks(self.K, self.dimension)

    @property
    def weight_bits(self) -> float:
        return self.bits * self.books / self.dimension

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        return self.N, self.books, row_bytes(self.vectors, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int, int, int]:
        return chunks(self.N, self.rows_per_codebook), self.books, 1 << self.bits, self.dimension

    @property
    def scale_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_scale), 1

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part(self.codes_shape, ("uint8",)),
            "codebook": Part(self.codebook_shape, ("int8",)),
            "scale": Part(self.scale_shape, FLOATS, computed=True),
        }

    def check(self, *arrays: np.ndarray) -> None:
        super().check(*arrays)
        if book_sums(arrays[1]).max(initial=0) > SUM_LIMIT:
            raise ValueError(f"the books of codebook add up to more than {SUM_LIMIT}")

    def unpack_codes(self, codes: np.ndarray) -> np.ndarray:
        """Packed codes -> uint8 [N, books, J]."""
        flat = unpack(codes.reshape(-1, codes.shape[-1]), self.bits, self.vectors)
        return flat.reshape(*codes.shape[:2], self.vectors)

    def levels(self, rows: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        """Integer weights int16 [R, K]: sums of codebook entries (slow, obvious reference)."""
        code = self.unpack_codes(codes[rows]).astype(np.intp)
        total = np.zeros((len(code), self.vectors, self.dimension), np.int16)
        for m in range(self.books):
            total += codebook[(rows // self.rows_per_codebook)[:, None], m, code[:, m]]
        return total.reshape(len(code), -1)[:, : self.K]

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, codebook, scale = arrays
        return self.levels(rows, codes, codebook).astype(np.float32) * scale[rows // self.rows_per_scale].astype(
            np.float32
        )

    def codebook_layout(self) -> CodebookLayout:
        return level_layout(self.N, self.K, self.rows_per_scale)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        if part == "codebook":
            return all_levels()
        out = np.empty((self.N, self.K), np.uint8)
        step = max(1, _AT_ONCE // (self.K * self.books))
        for first in range(0, self.N, step):
            rows = np.arange(first, min(first + step, self.N))
            out[rows] = (self.levels(rows, arrays[0], arrays[1]) + 128).astype(np.uint8)
        return out

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, codebook, scale = parts
        scales = row_scales(b, scale, all_rows(b)).astype("float32")
        return _body_levels(b, codes, codebook) * scales

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        if part == "codes":
            return random_bytes(self.codes_shape, rng)
        if part == "codebook":
            most = SUM_LIMIT // self.books
            return rng.integers(-most, most + 1, self.codebook_shape).astype(np.int8)
        return np.full(self.scale_shape, deviation / (SUM_LIMIT / np.sqrt(3 * self.books)), np.float16)


def book_sums(codebook: np.ndarray) -> np.ndarray:
    """Largest magnitude that the sum over books can reach, int [chunks]: what has to stay within SUM_LIMIT."""
    return np.abs(codebook.astype(np.int64)).max(axis=(2, 3)).sum(axis=1)


def _body_levels(b: Body, codes: Value, codebook: Value) -> Value:
    """From codes uint8 [N, books, bytes of a row] to the sums of their vectors, float32 [N, K]."""
    columns, rows, dimension, books = map(b.attribute, ("K", "N", "dimension", "books"))
    code_rows = rows * books
    row_codes = b.Reshape(codes, one_dimension(b, code_rows, [-1]))
    code = unpacked(b, row_codes, (columns + dimension - 1) // dimension)

    code_row = b.Range(0, code_rows, 1)
    row = code_row // books
    book = row // b.attribute("rows_per_codebook") * books + (code_row - row * books)
    size = entries(b, b.attribute("bits")).astype("int64")
    first = b.Unsqueeze(book * size, [1]).astype("int32")
    vectors = b.Gather(b.Reshape(codebook, one_dimension(b, [-1], dimension)), first + code.astype("int32"))
    by_book = b.Reshape(vectors, one_dimension(b, rows, books, [-1]))
    sums = b.ReduceSum(by_book.astype("float32"), [1], keepdims=0)
    return b.Slice(sums, [0], b.Reshape(columns, [1]), [1], name="level")
