"""The format `razored`: 8-bit integers as short codes with one shift a group (QRazor, arXiv 2501.13331). Numpy only.

    codes    uint8 [N, row_bytes(K, bits)], layout in export/contract/packing.py
    codebook int8 [1, 1, 2**bits], the code that each bit pattern stands for (export/contract/sdr.py)
    flags    uint8 [N, ceil(G / 2)], two a byte, the earlier group in the low half, G = ceil(K / group_size); one row of
             zeros where codes have all 8 bits and nothing is ever dropped
    scale    float16 or float32 [N, 1]
    W[n, k] = scale[n] * (codebook[code[n, k]] << flag[n, k // group_size]), its columns then rotated in blocks of
              `rotation` (export/contract/rotation.py)

Products with such matrices are computed on integers alone (SdrMatMul of export/contract/operators/integers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from export.contract.formats.base import FLOATS, Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout, all_levels, level_layout
from export.contract.packing import row_bytes, unpack
from export.contract.rotation import rotate_columns
from export.contract.sdr import SdrFormat, code_table, pack_flags, restore, unpack_flags

BASIS = 8  # bits of the integers before they are razored
_LEVEL_DEVIATION = 74  # of evenly spread int8 levels


@dataclass(frozen=True)
class RazoredLayout(Layout):
    """The attributes of one razored matrix W [N, K]."""

    SCHEME: ClassVar[str] = "razored"
    PARTS: ClassVar = ("codes", "codebook", "flags", "scale")
    KEPT: ClassVar = ("scale",)
    LIMITS: ClassVar = {"bits": 8, "group_size": 2**24}
    LEAST: ClassVar = {"bits": 2}

    group_size: int  # columns that share a flag
    rotation: int = 1  # columns that one Hadamard matrix mixes; 1: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotation & (self.rotation - 1) or self.K % self.rotation:
            raise ValueError(f"rotation must be a power of two that divides {self.K}, not {self.rotation}")

    @property
    def form(self) -> SdrFormat:
        return SdrFormat(BASIS, self.bits, self.group_size)

    @property
    def groups(self) -> int:
        """G, flags along a row."""
        return chunks(self.K, self.group_size)

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part((self.N, row_bytes(self.K, self.bits)), ("uint8",)),
            "codebook": Part((1, 1, 1 << self.bits), ("int8",)),
            "flags": Part((self.N if self.form.flag_limit else 1, chunks(self.groups, 2)), ("uint8",)),
            "scale": Part((self.N, 1), FLOATS),
        }

    def levels(self, rows: np.ndarray, codes: np.ndarray, codebook: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """The integers int64 [R, K] before scales and rotation."""
        code = codebook[0, 0, unpack(codes[rows], self.bits, self.K).astype(np.intp)]
        own = unpack_flags(flags[rows if len(flags) == self.N else np.zeros_like(rows)], self.groups)
        return restore(code, own, self.group_size)

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, codebook, flags, scale = arrays
        weights = self.levels(rows, codes, codebook, flags) * scale[rows].astype(np.float64)
        return rotate_columns(weights, self.rotation).astype(np.float32)

    def codebook_layout(self) -> CodebookLayout:
        """Raises ValueError where the columns are rotated: such a matrix multiplies rotated activations."""
        if self.rotation > 1:
            raise ValueError("rotated columns are no codes")
        return level_layout(self.N, self.K)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        if part == "codebook":
            return all_levels()
        return (self.levels(np.arange(self.N), *arrays[:3]) + 128).astype(np.uint8)

    def integer_attributes(self, group_size: int) -> dict[str, int] | None:
        if group_size != self.group_size:
            raise ValueError(
                f"its flags stand for {self.group_size} columns, those of its activations for {group_size}"
            )
        return {
            "bits": self.bits,
            "K": self.K,
            "N": self.N,
            "group_size": group_size,
            "rows_per_codebook": self.N,
            "rows_per_scale": 1,
        }

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        if part == "codes":
            return random_bytes(self.parts()["codes"].shape, rng)
        if part == "codebook":
            return code_table(self.form)[None, None]
        if part == "flags":
            flags = rng.integers(0, self.form.flag_limit + 1, (self.N, self.groups))
            return pack_flags(flags if self.form.flag_limit else flags[:1])
        return np.full((self.N, 1), deviation / _LEVEL_DEVIATION, np.float16)
