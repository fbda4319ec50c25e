"""The format `groups`: unsigned codes with a scale, and a zero point or a minimum, for each run of columns. Numpy only.

GroupMatMul(X, codes, scale, offset) -> Y = X @ W^T
    X       float32 [..., K]
    codes   uint8 [N, row_bytes(K, bits)], layout in export/contract/packing.py
    scale   float16 or float32 [N, G], G = ceil(K / group_size)
    offset  by the attribute `offsets`, g = k // group_size, every step rounded to float32, nothing fused:
            0  uint8 [1, 1], one zero point:      W[n, k] = scale[n, g] * (code[n, k] - offset[0, 0])
            1  uint8 [N, G], zero points:         W[n, k] = scale[n, g] * (code[n, k] - offset[n, g])
            2  float16 or float32 [N, G], minima: W[n, k] = scale[n, g] * code[n, k] + offset[n, g]

GroupGather(ids, codes, scale, offset) -> rows of the same W: float32 [..., K]; ids int64.

Attributes of both, all required: bits (1..8), K, N, group_size, offsets. This is what others store, without loss:
GGUF's Q4_0, Q5_0, Q8_0 and ternary types have one zero point, Q4_1 and Q5_1 minima; GPTQ, AWQ and compressed-tensors
zero points. A zero point is at most 2**bits; one for all of 8 bits is 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import column_groups, unpacked
from export.contract.formats.base import DOMAIN, FLOATS, LARGEST, OPSET, Layout, Part, chunks, field_names, random_bytes
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import row_bytes, unpack

if TYPE_CHECKING:
    import onnx

GROUP_MATMUL = "GroupMatMul"
GROUP_GATHER = "GroupGather"
ONE_ZERO, ZEROS, MINIMA = range(3)  # values of `offsets`


@dataclass(frozen=True)
class GroupsLayout(Layout):
    """The attributes of one matrix W [N, K] of codes with group scales."""

    SCHEME: ClassVar[str] = "groups"
    PARTS: ClassVar = ("codes", "scale", "offset")
    OPERATOR: ClassVar[str] = GROUP_MATMUL
    LOOKUP: ClassVar[str] = GROUP_GATHER
    KEPT: ClassVar = ("codes", "scale")
    LIMITS: ClassVar = {"bits": 8, "offsets": MINIMA}
    LEAST: ClassVar = {"offsets": ONE_ZERO}

    group_size: int  # columns that share a scale
    offsets: int  # ONE_ZERO, ZEROS or MINIMA

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.N * self.groups > LARGEST:
            raise ValueError(f"there would be {self.N * self.groups} scales; less than {2**31} are allowed")

    @property
    def groups(self) -> int:
        """G, scales along a row."""
        return chunks(self.K, self.group_size)

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.N, row_bytes(self.K, self.bits)

    @property
    def scale_shape(self) -> tuple[int, int]:
        return self.N, self.groups

    @property
    def offset_shape(self) -> tuple[int, int]:
        return (1, 1) if self.offsets == ONE_ZERO else self.scale_shape

    def parts(self) -> dict[str, Part]:
        return {
            "codes": Part(self.codes_shape, ("uint8",)),
            "scale": Part(self.scale_shape, FLOATS),
            "offset": Part(self.offset_shape, FLOATS if self.offsets == MINIMA else ("uint8",)),
        }

    def check(self, *arrays: np.ndarray) -> None:
        super().check(*arrays)
        if self.offsets == MINIMA:
            return
        if int(arrays[2].max(initial=0)) > 1 << self.bits:
            raise ValueError(f"offset holds a zero point above {1 << self.bits}")
        if self.offsets == ONE_ZERO and self.bits == 8 and arrays[2][0, 0] != 128:
            raise ValueError(f"offset holds {arrays[2][0, 0]}; one zero point for codes of 8 bits is 128")

    def rows(self, rows: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
        codes, scale, offset = arrays
        code = unpack(codes[rows], self.bits, self.K).astype(np.float32)
        group = np.arange(self.K) // self.group_size
        factor = scale[rows][:, group].astype(np.float32)
        own = np.broadcast_to(offset, self.scale_shape)[rows][:, group].astype(np.float32)
        return factor * code + own if self.offsets == MINIMA else factor * (code - own)

    def codebook_layout(self) -> CodebookLayout:
        """Raises ValueError where differences of codes and zero points are no int8 levels, and for minima."""
        if self.offsets == MINIMA:
            raise ValueError("codes with minima are no levels of a codebook")
        if self.offsets == ZEROS and self.bits == 8:
            raise ValueError("codes of 8 bits with zero points of their own are no levels of a codebook")
        return CodebookLayout(
            self.bits, self.K, self.N, min(self.group_size, self.K), self.N if self.offsets == ONE_ZERO else 1, 1
        )

    def codebook_part(self, part: str, *arrays: np.ndarray) -> np.ndarray:
        zero = arrays[2].astype(np.int16)
        if self.offsets == ONE_ZERO:
            zero = np.broadcast_to(zero, (1, self.groups))
        return (np.arange(1 << self.bits, dtype=np.int16) - zero[..., None]).astype(np.int8)

    @classmethod
    def body(cls, b: Body, *parts: Value) -> Value:
        codes, scale, offset = parts
        return _body_rows(b, codes, scale, b.Expand(offset, b.Shape(scale)))

    @classmethod
    def function_bodies(cls) -> tuple[onnx.FunctionProto, ...]:
        return (*super().function_bodies(), _gather_body())

    def random(self, part: str, rng: np.random.Generator, deviation: float) -> np.ndarray:
        """Zero points are the middle code; minima make the middle of the codes zero."""
        step, middle = deviation * 12**0.5 / (1 << self.bits), (1 << self.bits) // 2
        if part == "codes":
            return random_bytes(self.codes_shape, rng)
        if part == "scale":
            return np.full(self.scale_shape, step, np.float16)
        if self.offsets == MINIMA:
            return np.full(self.offset_shape, -middle * step, np.float16)
        return np.full(self.offset_shape, middle, np.uint8)


def group_gather(ids: np.ndarray, layout: GroupsLayout, *arrays: np.ndarray) -> np.ndarray:
    """Reference of GroupGather: int64 [...] -> float32 [..., K]; arrays: codes, scale, offset."""
    layout.check(*arrays)
    return layout.rows(ids.reshape(-1), *arrays).reshape(*ids.shape, layout.K)


def _body_rows(b: Body, row_codes: Value, scale: Value, offset: Value) -> Value:
    """float32 [R, K], the rows of W that these [R, bytes of a row], [R, G] and [R, G] are.

    Minima are subtracted with the other sign, and what is not there is a zero: x - 0 is x, be it -0. (Where would do,
    but onnxruntime's makes 0 of -0.)
    """
    columns = b.attribute("K")
    group = column_groups(b, columns, b.attribute("group_size")).of_column
    own, is_minimum = offset.astype("float32"), b.Equal(b.attribute("offsets"), MINIMA).astype("float32")
    zero = b.Gather(own * b.Sub(1.0, is_minimum), group, axis=1, name="zero")
    negated = b.Gather(own * b.Sub(0.0, is_minimum), group, axis=1, name="negated_minimum")
    factor = b.Gather(scale.astype("float32"), group, axis=1, name="factor")
    return b.named("weight", factor * (unpacked(b, row_codes, columns).astype("float32") - zero) - negated)


@cache
def _gather_body() -> onnx.FunctionProto:
    def write(b: Body, ids: Value, codes: Value, scale: Value, offset: Value) -> Value:
        row = b.Reshape(ids, [-1], name="row")
        whole = b.Expand(offset, b.Shape(scale))
        weight = _body_rows(b, b.Gather(codes, row, name="row_codes"), b.Gather(scale, row), b.Gather(whole, row))
        shape = b.Concat(b.Shape(ids), b.Reshape(b.attribute("K"), [1]), axis=0)
        return b.Reshape(weight, shape)

    inputs = ("ids", *GroupsLayout.PARTS)
    return function_proto(DOMAIN, OPSET, GROUP_GATHER, inputs, field_names(GroupsLayout), write)
