"""The format `sparse_codes`: scalar codes of the weights that are kept, and a mask that says which. Numpy only.

SparseCodesMatMul(X, mask, codes, codebook, scale) -> Y = X @ W^T
    X        float32 [..., K]
    mask     uint8 [N, row_bytes(K, 1)], a bit for each weight, layout in packing.py; 1: kept
    codes    uint8 [N, row_bytes(kept_columns, bits)], codes of a row's kept weights in the order of their columns
    codebook int8 [ceil(N / rows_per_codebook), 2**bits]
    scale    float16 or float32 [ceil(N / rows_per_scale), 1]
    W[n, k] = scale[n // rows_per_scale] * codebook[n // rows_per_codebook, code of (n, k)] where the mask is 1, else 0

Of every run of `run` columns each row keeps exactly `kept` (of a shorter last one no more than it has): 2 and 4 is the
2:4 pattern of sparse tensor cores, K / 2 and K leaves the places free. A bit for each weight is what two-bit positions
of two kept in four take. SLiM (arXiv 2410.09615) stores such weights with one scale a matrix.

Attributes, all required: bits (1..7), K, N, kept, run, rows_per_codebook, rows_per_scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from export.contract.body import Body, Value
from export.contract.body_parts import all_rows, entries, row_scales, unpacked
from export.contract.formats.base import FLOATS, LARGEST, Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack, row_bytes, unpack

SPARSE_CODES_MATMUL = "SparseCodesMatMul"
_LEVEL_DEVIATION = 74  # of evenly spread int8 levels


@dataclass(frozen=True)
class SparseCodesLayout(Layout):
    """The attributes of one matrix W [N, K] of which each row keeps some weights."""

    SCHEME: ClassVar[str] = "sparse_codes"
    PARTS: ClassVar = ("mask", "codes", "codebook", "scale")
    OPERATOR: ClassVar[str] = SPARSE_CODES_MATMUL
    KEPT: ClassVar = ("scale",)
    LIMITS: ClassVar = {"bits": 7}  # as a codebook there is one level more

    kept: int  # weights of a run
    run: int  # columns
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept > self.run:
            raise ValueError(f"kept must be 1 to {self.run}, the run, not {self.kept}")
        if chunks(self.N, self.rows_per_codebook) << self.bits > LARGEST:  # the function body counts them in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def kept_columns(self) -> int:
        """Weights of a row that are kept."""
        full, rest = divmod(self.K, self.run)
        return full * self.kept + min(rest, self.kept)

    def parts(self) -> dict[str, Part]:
        return {
            "mask": Part((self.N, row_bytes(self.K, 1)), ("uint8",)),
            "codes": Part((self.N, row_bytes(self.kept_columns, self.bits)), ("uint8",)),
            "codebook": Part((chunks(self.N, self.rows_per_codebook), 1 << self.bits), ("int8",)),
            "scale": Part((chunks(self.N, self.rows_per_scale), 1), FLOATS, computed=True),
        }

    def check(self, *arrays: np.ndarray) -> None:
        super().check(*arrays)
        starts = np.arange(0, self.K, self.run)
        wanted = np.minimum(np.diff(starts, append=self.K), self.kept)
        for rows in _some_rows(self.N, self.K):
            found = np.add.reduceat(unpack(arrays[0][rows], 1, self.K), starts, axis=1, dtype=np.int64)
            if (found != wanted).any():
                raise ValueError(f"mask does not keep {self.kept} weights of every {self.run}")

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        mask, codes, codebook, scale = arrays
        code = unpack(codes[rows], self.bits, self.kept_columns).astype(np.intp)
        level = codebook[(rows // self.rows_per_codebook)[:, None], code].astype(np.float32)
        out = np.zeros((len(rows), self.K), np.float32)
        out[unpack(mask[rows], 1, self.K) == 1] = (
            level * scale[rows // self.rows_per_scale].astype(np.float32)
        ).reshape(-1)
        return out

    def codebook_layout(self) -> CodebookLayout:
        """Codes of a bit more, the upper half of whose codebook is zeros."""
        return CodebookLayout(self.bits + 1, self.K, self.N, 0, self.rows_per_codebook, self.rows_per_scale)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        mask, codes, codebook, scale = arrays
        if part == "scale":
            return scale
        if part == "codebook":
            return np.concatenate([codebook, np.zeros_like(codebook)], axis=1)[:, None]
        out = np.empty((self.N, row_bytes(self.K, self.bits + 1)), np.uint8)
        for rows in _some_rows(self.N, self.K):
            kept = unpack(mask[rows], 1, self.K) == 1
            found = np.full(kept.shape, 1 << self.bits, np.uint8)
            found[kept] = unpack(codes[rows], self.bits, self.kept_columns).reshape(-1)
            out[rows] = pack(found, self.bits + 1)
        return out

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        mask, codes, codebook, scale = parts
        columns, bits, row = b.attribute("K"), b.attribute("bits"), all_rows(b)
        kept, run = b.attribute("kept"), b.attribute("run")
        full = columns // run
        code = unpacked(b, codes, full * kept + b.Min(columns - full * run, kept))
        b.replace("bits", b.constant(1))
        is_kept = unpacked(b, mask, columns)
        b.replace("bits", bits)
        # The place of a kept weight among its row's codes; of others some place, whose weight is dropped.
        place = b.Max(b.CumSum(is_kept.astype("int32"), 1) - b.constant(1, "int32"), b.constant(0, "int32"))
        first = (row // b.attribute("rows_per_codebook") * entries(b, bits).astype("int64")).astype("int32")
        entry = b.Unsqueeze(first, [1]) + b.GatherElements(code, place, axis=1, name="own_code").astype("int32")
        level = b.Gather(b.Reshape(codebook, [-1]), entry, name="level").astype("float32")
        weight = level * row_scales(b, scale, row).astype("float32")
        return b.named("weight", b.Where(is_kept.astype("bool"), weight, 0.0))

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        shape = self.parts()[part].shape
        if part == "mask":
            return pack(largest(rng.random((self.N, self.K), np.float32), self.kept, self.run), 1)
        if part == "codes":
            return random_bytes(shape, rng)
        if part == "codebook":
            return np.broadcast_to(np.linspace(-127, 127, 1 << self.bits).round().astype(np.int8), shape).copy()
        return np.full(shape, deviation / _LEVEL_DEVIATION, np.float16)

    @property
    def weight_bits(self) -> float:
        return 1 + self.bits * self.density

    @property
    def density(self) -> float:
        return self.kept_columns / self.K


def largest(scores: np.ndarray, kept: int, run: int) -> np.ndarray:
    """uint8 [N, K]: 1 for the `kept` highest scores [N, K] of every run of columns, of equal ones the first."""
    rows, columns = scores.shape
    run = min(run, columns)
    runs = chunks(columns, run)
    padded = np.full((rows, runs * run), -np.inf, scores.dtype)
    padded[:, :columns] = scores
    order = np.argsort(-padded.reshape(rows, runs, run), axis=2, kind="stable")
    out = np.zeros(order.shape, np.uint8)
    np.put_along_axis(out, order[:, :, :kept], 1, axis=2)
    return out.reshape(rows, -1)[:, :columns]


def _some_rows(rows: int, columns: int) -> list[slice]:
    """Runs of rows, of about a million weights."""
    some = max((1 << 20) // max(columns, 1), 1)
    return [slice(start, start + some) for start in range(0, rows, some)]
