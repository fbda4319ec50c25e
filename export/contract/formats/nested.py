"""The format `nested`: scalar codes that are read at several widths, a plane of bits for each bit above the lowest.

NestedMatMul(X, codes, planes, codebook, scale) -> Y = X @ W^T, W at the full width
    X        float32 [..., K]
    codes    uint8 [N, row_bytes(K, lowest)], the leading `lowest` bits of every code, layout in packing.py
    planes   uint8 [bits - lowest, N, row_bytes(K, 1)], the next bits, one plane after the other, layout in packing.py
    codebook int8 [ceil(N / rows_per_codebook), 2**(bits + 1) - 2**lowest], the codebooks of all widths, narrowest first
    scale    float16 or float32 [ceil(N / rows_per_scale), 1], of all widths
    code_w[n, k] = the leading w bits: codes[n, k], then a bit of each of the first w - lowest planes
    W_w[n, k] = scale[n // rows_per_scale] * codebook[n // rows_per_codebook, 2**w - 2**lowest + code_w[n, k]]

A matrix is read at any width w from lowest to bits and is then a matrix of the format `codebook` with codes of w bits
(at_width); the planes behind that width need not be read. As in any-precision models (Park et al., arXiv 2402.10517;
PMPD, arXiv 2410.13461) a narrow code is a prefix of the wide one, but each width has levels of its own.

Attributes, all required: bits (2..8, the full width), K, N, lowest (1..bits - 1), rows_per_codebook, rows_per_scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from export.contract.body import Body, Value
from export.contract.body_parts import all_rows, entries, one_dimension, row_scales, unpacked
from export.contract.formats.base import FLOATS, LARGEST, Layout, Part, chunks, random_bytes
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack, row_bytes, unpack

NESTED_MATMUL = "NestedMatMul"
_LEVEL_DEVIATION = 74  # of evenly spread int8 levels


@dataclass(frozen=True)
class NestedLayout(Layout):
    """The attributes of one matrix W [N, K] of nested codes."""

    SCHEME: ClassVar[str] = "nested"
    PARTS: ClassVar = ("codes", "planes", "codebook", "scale")
    OPERATOR: ClassVar[str] = NESTED_MATMUL
    KEPT: ClassVar = ("scale",)
    BY_ROWS: ClassVar[bool] = False  # a plane holds a bit of all rows
    LIMITS: ClassVar = {"bits": 8, "lowest": 7}
    LEAST: ClassVar = {"bits": 2}

    lowest: int  # the narrowest width
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest >= self.bits:
            raise ValueError(f"lowest must be 1 to {self.bits - 1} at {self.bits} bits, not {self.lowest}")
        if int(np.prod(self.codebook_shape, dtype=object)) > LARGEST:  # the function body counts entries in int32
            raise ValueError("the codebooks would have too many entries")

    @property
    def widths(self) -> range:
        """Those at which it can be read."""
        return range(self.lowest, self.bits + 1)

    @property
    def codebook_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_codebook), self.entries_of(self.bits).stop

    @property
    def scale_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_scale), 1

    def entries_of(self, width: int) -> slice:
        """Where a codebook's entries for this width lie."""
        return slice((1 << width) - (1 << self.lowest), (2 << width) - (1 << self.lowest))

    def parts(self) -> dict[str, Part]:
        planes = (self.bits - self.lowest, self.N, row_bytes(self.K, 1))
        return {
            "codes": Part((self.N, row_bytes(self.K, self.lowest)), ("uint8",)),
            "planes": Part(planes, ("uint8",)),
            "codebook": Part(self.codebook_shape, ("int8",)),
            "scale": Part(self.scale_shape, FLOATS, computed=True),
        }

    def codes_at(self, width: int, codes: np.ndarray, planes: np.ndarray) -> np.ndarray:
        """Codes uint8 [N, K] of this width (slow, obvious reference)."""
        found = unpack(codes, self.lowest, self.K)
        for plane in planes[: width - self.lowest]:
            found = found << 1 | unpack(plane, 1, self.K)
        return found

    def at_width(self, width: int) -> CodebookLayout:
        """The layout of the matrix as it is read at this width. Raises ValueError for one that it does not have."""
        if width not in self.widths:
            raise ValueError(f"codes of {self.lowest} to {self.bits} bits cannot be read at {width}")
        return CodebookLayout(width, self.K, self.N, 0, self.rows_per_codebook, self.rows_per_scale)

    def part_at(self, width: int, part: str, *arrays: np.ndarray) -> np.ndarray:
        """The part codes, codebook or scale of that form. Of planes, only those of the width are read.

        Codes of the lowest width are those that are stored, not copied.
        """
        codes, planes, codebook, scale = arrays
        if part == "scale":
            return scale
        if part == "codebook":
            return np.ascontiguousarray(codebook[:, None, self.entries_of(width)])
        return codes if width == self.lowest else joined(codes, planes[: width - self.lowest], self.lowest, self.K)

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, planes, codebook, scale = arrays
        code = self.codes_at(self.bits, codes[rows], planes[:, rows]).astype(np.intp)
        level = codebook[(rows // self.rows_per_codebook)[:, None], self.entries_of(self.bits).start + code]
        return level.astype(np.float32) * scale[rows // self.rows_per_scale].astype(np.float32)

    def codebook_layout(self) -> CodebookLayout:
        return self.at_width(self.bits)

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        return self.part_at(self.bits, part, *arrays)

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, planes, codebook, scale = parts
        rows, columns, lowest, row = b.attribute("N"), b.attribute("K"), b.attribute("lowest"), all_rows(b)
        bits, count = b.attribute("bits"), b.attribute("bits") - lowest
        b.replace("bits", lowest)
        leading = unpacked(b, codes, columns).astype("int32")
        b.replace("bits", b.constant(1))
        plane_rows = b.Reshape(planes, b.Concat([-1], b.Shape(planes, start=2), axis=0), name="plane_rows")
        plane_bits = b.Reshape(unpacked(b, plane_rows, columns), one_dimension(b, count, [-1]), name="plane_bits")
        b.replace("bits", bits)
        # MatMulInteger adds up the planes, each times its power of two: no plane is ever wider than a byte a weight.
        powers = b.constant(1, "uint8") << (count - 1 - b.Range(0, count, 1)).astype("uint8")
        trailing = b.MatMulInteger(b.Unsqueeze(powers, [0], name="powers"), plane_bits, name="trailing")
        code = leading * entries(b, count).astype("int32") + b.Reshape(trailing, one_dimension(b, rows, columns))
        size = (entries(b, bits) * b.constant(2, "uint32") - entries(b, lowest)).astype("int64")
        own = size - entries(b, bits).astype("int64")
        first = b.Unsqueeze(row // b.attribute("rows_per_codebook") * size + own, [1]).astype("int32")
        level = b.Gather(b.Reshape(codebook, [-1]), first + code, name="level").astype("float32")
        return level * row_scales(b, scale, row).astype("float32")

    def with_rows(self, count: int) -> NestedLayout:
        raise ValueError("its planes hold a bit of all rows")

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        shape = self.parts()[part].shape
        if part in ("codes", "planes"):
            return random_bytes(shape, rng)
        if part == "codebook":
            levels = [np.linspace(-128, 127, 1 << width).round().astype(np.int8) for width in self.widths]
            return np.broadcast_to(np.concatenate(levels), shape).copy()
        return np.full(shape, deviation / _LEVEL_DEVIATION, np.float16)


def split(codes: np.ndarray, bits: int, lowest: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts codes and planes for codes uint8 [N, K] of `bits` bits."""
    planes = [pack(codes >> shift & 1, 1) for shift in range(bits - lowest)[::-1]]
    return pack(codes >> (bits - lowest), lowest), np.stack(planes)


def joined(codes: np.ndarray, planes: np.ndarray, lowest: int, columns: int) -> np.ndarray:
    """Packed codes [N, row_bytes(columns, lowest + P)] from those of `lowest` bits and P planes [P, N, bytes].

    A few rows at a time, so that little is unpacked at once.
    """
    width = lowest + len(planes)
    out = np.empty((len(codes), row_bytes(columns, width)), np.uint8)
    some = max(_UNPACKED // max(columns, 1), 1)
    for start in range(0, len(codes), some):
        rows = slice(start, start + some)
        found = unpack(codes[rows], lowest, columns)
        for plane in planes:
            found = found << 1 | unpack(plane[rows], 1, columns)
        out[rows] = pack(found, width)
    return out


_UNPACKED = 1 << 20  # codes that are unpacked at once
