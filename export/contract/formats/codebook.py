"""The format `codebook`: scalar codes of 1 to 8 bits, int8 codebooks, scales. The tool's main one. Numpy only.

CodebookMatMul(X, codes, codebook, scale) -> Y = X @ W^T
    X        float32 [..., K]
    codes    uint8 [N, row_bytes(K, bits)], layout in export/contract/packing.py
    codebook int8 [ceil(N / rows_per_codebook), G, 2**bits], G = 1 or ceil(K / group_size)
    scale    float16 or float32 [ceil(N / rows_per_scale), G]
    W[n, k] = scale[n // rows_per_scale, g] * codebook[n // rows_per_codebook, g, code[n, k]],  g = k // group_size

CodebookGather(ids, codes, codebook, scale) -> rows of the same W: float32 [..., K]; ids int64.

Attributes of both, all required: bits (1..8), K, N, group_size (columns that share a codebook; 0 means the whole row),
rows_per_codebook, rows_per_scale. A bias is an Add node and a low-rank residual two MatMul nodes beside the operator.

rows_per_scale is what a short row needs: at K = 64 one float16 scale per row would cost 0.25 bit per weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import all_rows, codebook_levels, column_groups, row_scales
from export.contract.formats.base import (
    DOMAIN,
    FLOATS,
    LARGEST,
    OPSET,
    Layout,
    Part,
    chunks,
    field_names,
    random_bytes,
)
from export.contract.packing import row_bytes, unpack

if TYPE_CHECKING:
    import onnx

CODEBOOK_MATMUL = "CodebookMatMul"
CODEBOOK_GATHER = "CodebookGather"
_LEVEL_DEVIATION = 74  # of evenly spread int8 levels


@dataclass(frozen=True)
class CodebookLayout(Layout):
    """The attributes of one codebook tensor W [N, K]."""

    SCHEME: ClassVar[str] = "codebook"
    OPERATOR: ClassVar[str] = CODEBOOK_MATMUL
    LOOKUP: ClassVar[str] = CODEBOOK_GATHER
    KEPT: ClassVar = ("codes", "codebook", "scale")
    LIMITS: ClassVar = {"bits": 8}
    LEAST: ClassVar = {"group_size": 0}

    group_size: int = 0  # columns that share a codebook; 0: the whole row
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        entries = chunks(self.N, self.rows_per_codebook) * self.groups << self.bits
        if entries > LARGEST:  # the function body counts them in int32
            raise ValueError(f"the codebooks would have {entries} entries; less than {2**31} are allowed")

    @property
    def columns_per_group(self) -> int:
        return self.group_size or self.K

    @property
    def groups(self) -> int:
        """G, codebooks along a row."""
        return chunks(self.K, self.columns_per_group)

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.N, row_bytes(self.K, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        return chunks(self.N, self.rows_per_codebook), self.groups, 1 << self.bits

    @property
    def scale_shape(self) -> tuple[int, int]:
        return chunks(self.N, self.rows_per_scale), self.groups

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part(self.codes_shape, ("uint8",)),
            "codebook": Part(self.codebook_shape, ("int8",)),
            "scale": Part(self.scale_shape, FLOATS, computed=True),
        }

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, codebook, scale = arrays
        code = unpack(codes[rows], self.bits, self.K).astype(np.intp)
        group = np.arange(self.K) // self.columns_per_group
        level = codebook[(rows // self.rows_per_codebook)[:, None], group[None, :], code].astype(np.float32)
        return level * scale[(rows // self.rows_per_scale)[:, None], group[None, :]].astype(np.float32)

    def codebook_layout(self) -> CodebookLayout:
        return self

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, codebook, scale = parts
        return _body_rows(b, codes, all_rows(b), codebook, scale)

    @classmethod
    def function_bodies(cls) -> tuple[onnx.FunctionProto, ...]:
        return (*super().function_bodies(), _gather_body())

    def integer_attributes(self, group_size: int) -> dict[str, int] | None:
        if self.group_size:  # integer products add up whole rows
            return None
        return {**self.attributes(), "group_size": group_size}

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        if part == "codes":
            return random_bytes(self.codes_shape, rng)
        if part == "codebook":
            levels = np.linspace(-128, 127, 1 << self.bits).round().astype(np.int8)
            return np.broadcast_to(levels, self.codebook_shape).copy()
        return np.full(self.scale_shape, deviation / _LEVEL_DEVIATION, np.float16)


def level_layout(rows: int, columns: int, rows_per_scale: int = 1) -> CodebookLayout:
    """Any int8 levels as codes of 8 bits: level + 128, of one codebook that holds -128 to 127 (all_levels)."""
    return CodebookLayout(8, columns, rows, 0, rows, rows_per_scale)


def all_levels() -> np.ndarray:
    """The codebook int8 [1, 1, 256] of -128 to 127."""
    return np.arange(-128, 128, dtype=np.int8)[None, None]


def codebook_matmul(x: np.ndarray, layout: CodebookLayout, *arrays: np.ndarray) -> np.ndarray:
    """Reference of CodebookMatMul: float32 [..., K] -> float32 [..., N]; arrays: codes, codebook, scale."""
    return np.matmul(x, layout.dequantized(*arrays).T)


def codebook_gather(ids: np.ndarray, layout: CodebookLayout, *arrays: np.ndarray) -> np.ndarray:
    """Reference of CodebookGather: int64 [...] -> float32 [..., K]; arrays: codes, codebook, scale."""
    layout.check(*arrays)
    return layout.rows(ids.reshape(-1), *arrays).reshape(*ids.shape, layout.K)


def _body_rows(b: Body, row_codes: Value, row: Value, codebook: Value, scale: Value) -> Value:
    """float32 [R, K], the rows of W that lie in row_codes."""
    columns = b.attribute("K")
    groups = column_groups(b, columns, b.attribute("group_size"))
    level = codebook_levels(b, row_codes, row, codebook, columns, groups).astype("float32")
    by_column = b.Gather(row_scales(b, scale, row), groups.of_column, axis=1)
    return b.named("weight", level * by_column.astype("float32"))


@cache
def _gather_body() -> onnx.FunctionProto:
    def write(b: Body, ids: Value, codes: Value, codebook: Value, scale: Value) -> Value:
        row = b.Reshape(ids, [-1], name="row")
        weight = _body_rows(b, b.Gather(codes, row, name="row_codes"), row, codebook, scale)
        shape = b.Concat(b.Shape(ids), b.Reshape(b.attribute("K"), [1]), axis=0)
        return b.Reshape(weight, shape)

    inputs = ("ids", *CodebookLayout.PARTS)
    return function_proto(DOMAIN, OPSET, CODEBOOK_GATHER, inputs, field_names(CodebookLayout), write)
