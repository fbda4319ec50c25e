"""The ai.athena operator of sparse weights: names, attributes, shapes and a numpy reference. Numpy only.

SparseMatMul(X, gaps, values) -> Y = X @ S^T
    X       float32 [..., K]
    gaps    uint16 [n], distance of each stored weight from the one before it, in row-major order of S [N, K]; the first
            counts from the beginning of S. All others are at least 1; a longer way is told in several entries, zeros.
    values  float16 or float32 [n]

Attributes, both required: K, N. Stands beside the product with a quantized matrix (SqueezeLLM's dense-and-sparse form,
arXiv 2306.07629): the few weights that quantization harms most are stored apart, 32 bits each, instead of the 48 of a
compressed row format with float16 values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

SPARSE_MATMUL = "SparseMatMul"
LONGEST = 65535  # of one gap


@dataclass(frozen=True)
class SparseLayout:
    """The attributes of one sparse matrix S [N, K]."""

    K: int
    N: int

    def __post_init__(self) -> None:
        for name in ("K", "N"):
            if not 1 <= getattr(self, name) <= 2**31 - 1:
                raise ValueError(f"{name} must be 1 to {2**31 - 1}, not {getattr(self, name)}")

    def attributes(self) -> dict[str, int]:
        """ONNX node attributes, by name."""
        return asdict(self)

    def places(self, gaps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Row-major indices int64 [n] of the stored weights. Raises ValueError when the arrays are not of this form."""
        if gaps.dtype != np.uint16 or gaps.ndim != 1:
            raise ValueError(f"gaps is {gaps.dtype.name} {list(gaps.shape)}, expected uint16 [n]")
        if values.dtype not in (np.float16, np.float32) or values.shape != gaps.shape:
            raise ValueError(f"values is {values.dtype.name} {list(values.shape)}, expected float16 {list(gaps.shape)}")
        index = np.cumsum(gaps, dtype=np.int64)
        if gaps.size and (int(gaps[1:].min(initial=1)) < 1 or int(index[-1]) >= self.N * self.K):
            raise ValueError("gaps repeat a place or lead out of the matrix")
        if not np.isfinite(values).all():
            raise ValueError("values holds numbers that are not finite")
        return index

    def dense(self, gaps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """S float32 [N, K]."""
        out = np.zeros(self.N * self.K, np.float32)
        out[self.places(gaps, values)] = values
        return out.reshape(self.N, self.K)


def sparse_parts(places: np.ndarray, values: np.ndarray, dtype: type[np.floating]) -> tuple[np.ndarray, np.ndarray]:
    """(gaps, values) of weights at ascending row-major places int64 [n]."""
    steps = np.diff(places, prepend=0)
    longer = steps // (LONGEST + 1)  # entries of zero on the way to each
    ends = np.cumsum(longer + 1) - 1
    gaps = np.full(int(ends[-1]) + 1 if ends.size else 0, LONGEST, np.uint16)
    stored = np.zeros(gaps.shape, dtype)
    gaps[ends], stored[ends] = steps - longer * LONGEST, values
    return gaps, stored
