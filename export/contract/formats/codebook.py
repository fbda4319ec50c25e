"""The ai.athena operators: names, attributes, shapes and a numpy reference of each. Numpy only.

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

from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from export.contract.packing import row_bytes, unpack

DOMAIN = "ai.athena"
DOMAIN_VERSION = 1
OPSET = 23
IR_VERSION = 11
CODEBOOK_MATMUL = "CodebookMatMul"
CODEBOOK_GATHER = "CodebookGather"


@dataclass(frozen=True)
class CodebookLayout:
    """The attributes of one codebook tensor W [N, K]."""

    bits: int
    K: int
    N: int
    group_size: int = 0  # columns that share a codebook; 0: the whole row
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        limits = {
            "bits": 8,
            "K": 2**31 - 1,
            "N": 2**31 - 1,
            "rows_per_codebook": 2**31 - 1,
            "rows_per_scale": 2**31 - 1,
        }
        for name, high in limits.items():
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be 1 to {high}, not {getattr(self, name)}")
        if self.group_size < 0:
            raise ValueError(f"group_size must be 0 (whole row) or positive, not {self.group_size}")
        entries = -(-self.N // self.rows_per_codebook) * self.groups << self.bits
        if entries >= 2**31:  # the function body counts them in int32
            raise ValueError(f"the codebooks would have {entries} entries; less than {2**31} are allowed")

    @property
    def columns_per_group(self) -> int:
        return self.group_size or self.K

    @property
    def groups(self) -> int:
        """G, codebooks along a row."""
        return -(-self.K // self.columns_per_group)

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.N, row_bytes(self.K, self.bits)

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        return -(-self.N // self.rows_per_codebook), self.groups, 1 << self.bits

    @property
    def scale_shape(self) -> tuple[int, int]:
        return -(-self.N // self.rows_per_scale), self.groups

    def attributes(self) -> dict[str, int]:
        """ONNX node attributes, by name."""
        return asdict(self)

    def stored_bytes(self, scale_itemsize: int = 2) -> int:
        """Bytes of codes, codebooks and scales together."""
        codes, codebook, scale = self.codes_shape, self.codebook_shape, self.scale_shape
        return int(np.prod(codes)) + int(np.prod(codebook)) + int(np.prod(scale)) * scale_itemsize

    def check(self, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
        """Raise ValueError when an array does not have the dtype and shape that the contract asks for."""
        check_parts(self, codes, codebook, scale)


class Shapes(Protocol):
    """What the layouts of all products have in common."""

    @property
    def codes_shape(self) -> tuple[int, ...]: ...

    @property
    def codebook_shape(self) -> tuple[int, ...]: ...

    @property
    def scale_shape(self) -> tuple[int, ...]: ...


def check_parts(layout: Shapes, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
    """Raise ValueError when an array does not have the dtype and shape that a layout asks for."""
    expected = {
        "codes": (codes, (np.uint8,), layout.codes_shape),
        "codebook": (codebook, (np.int8,), layout.codebook_shape),
        "scale": (scale, (np.float16, np.float32), layout.scale_shape),
    }
    for name, (array, dtypes, shape) in expected.items():
        if array.dtype not in dtypes or array.shape != shape:
            wanted = " or ".join(np.dtype(d).name for d in dtypes)
            raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, expected {wanted} {list(shape)}")


def dequantize(layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 [N, K] matrix that packed codes, int8 codebook and scale stand for (slow, obvious reference)."""
    layout.check(codes, codebook, scale)
    return dequantize_rows(layout, np.arange(layout.N), codes, codebook, scale)


def dequantize_rows(
    layout: CodebookLayout, rows: np.ndarray, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Rows `rows` (int [R]) of the matrix as float32 [R, K]."""
    code = unpack(codes[rows], layout.bits, layout.K).astype(np.intp)
    group = np.arange(layout.K) // layout.columns_per_group
    book_row = (rows // layout.rows_per_codebook)[:, None]
    scale_row = (rows // layout.rows_per_scale)[:, None]
    level = codebook[book_row, group[None, :], code].astype(np.float32)
    return level * scale[scale_row, group[None, :]].astype(np.float32)


def codebook_matmul(
    x: np.ndarray, layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Reference of CodebookMatMul: float32 [..., K] -> float32 [..., N]."""
    return np.matmul(x, dequantize(layout, codes, codebook, scale).T)


def codebook_gather(
    ids: np.ndarray, layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Reference of CodebookGather: int64 [...] -> float32 [..., K]."""
    layout.check(codes, codebook, scale)
    return dequantize_rows(layout, ids.reshape(-1), codes, codebook, scale).reshape(*ids.shape, layout.K)
