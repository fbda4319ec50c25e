"""The format `mxfp4`: 4-bit floats that share a power of two in runs of 32 columns (OCP Microscaling v1.0). Numpy only.

Mxfp4MatMul(X, codes, scale) -> Y = X @ W^T
    X        float32 [..., K]
    codes    uint8 [N, row_bytes(K, 4)], layout in export/contract/packing.py: sign, exponent (2 bits), mantissa (1 bit)
    scale    uint8 [N, ceil(K / 32)], the exponent of a power of two plus 127 (E8M0)
    W[n, k] = E2M1[code[n, k]] * 2**(scale[n, k // 32] - 127),  E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives

Attributes, all required: bits (4), K, N. Scales above 252 would leave float32 (255 stands for no number) and are
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from export.contract.body import Body, Value
from export.contract.body_parts import unpacked
from export.contract.formats.base import Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import row_bytes, unpack

MXFP4_MATMUL = "Mxfp4MatMul"
GROUP = 32
LARGEST_SCALE = 252
BIAS = 127
HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # twice the value of each code


@dataclass(frozen=True)
class Mxfp4Layout(Layout):
    """The attributes of one matrix W [N, K] of 4-bit floats."""

    SCHEME: ClassVar[str] = "mxfp4"
    PARTS: ClassVar = ("codes", "scale")
    OPERATOR: ClassVar[str] = MXFP4_MATMUL
    KEPT: ClassVar = ("codes",)
    LIMITS: ClassVar = {"bits": 4}
    LEAST: ClassVar = {"bits": 4}

    @property
    def groups(self) -> int:
        """G, scales along a row."""
        return chunks(self.K, GROUP)

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part((self.N, row_bytes(self.K, self.bits)), ("uint8",)),
            "scale": Part((self.N, self.groups), ("uint8",)),
        }

    def check(self, *arrays: np.ndarray) -> None:
        super().check(*arrays)
        if int(arrays[1].max(initial=0)) > LARGEST_SCALE:
            raise ValueError(f"scale holds an exponent above {LARGEST_SCALE}")

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, scale = arrays
        halves = HALVES[unpack(codes[rows], self.bits, self.K)].astype(np.float32)
        return halves * np.repeat(_half_steps(scale[rows]), GROUP, axis=1)[:, : self.K]

    def codebook_layout(self) -> CodebookLayout:
        """The same 4-bit codes, with the same codebook for each group of columns."""
        return CodebookLayout(4, self.K, self.N, min(GROUP, self.K), self.N, 1)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        return np.tile(HALVES, (1, self.groups, 1)) if part == "codebook" else _half_steps(arrays[1])

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, scale = parts
        columns = b.attribute("K")
        halves = b.Gather(b.constant(HALVES.tolist()), unpacked(b, codes, columns).astype("int32")).astype("float32")
        group = b.Range(0, columns, 1) // GROUP
        exponent = b.Gather(scale, group, axis=1).astype("float32") - float(BIAS + 1)
        return halves * b.Pow(2.0, exponent)

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        if part == "codes":
            return random_bytes(self.parts()["codes"].shape, rng)
        exponent = round(float(np.log2(deviation / HALVES.std() * 2)))
        return np.full((self.N, self.groups), BIAS + exponent, np.uint8)


def _half_steps(scale: np.ndarray) -> np.ndarray:
    """What one half is worth, float32: 2**(scale - 128), exact down to the subnormal 2**-128."""
    return np.ldexp(np.float32(1.0), scale.astype(np.int32) - BIAS - 1)
