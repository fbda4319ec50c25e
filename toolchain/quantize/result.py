"""What a quantization method returns for one matrix, and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from export.checkpoint import TensorRecord
from export.contract import CodebookLayout, dequantize
from export.packing import pack


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix [N, K] in the form of the op contract, with an optional residual low-rank term."""

    layout: CodebookLayout
    codes: np.ndarray  # packed, uint8 [N, row_bytes]
    codebook: np.ndarray  # int8 [ceil(N / rows_per_codebook), G, levels]
    scale: np.ndarray  # float16 or float32 [ceil(N / rows_per_scale), G]
    lowrank_a: np.ndarray | None = None  # float16 [r, K]
    lowrank_b: np.ndarray | None = None  # float16 [N, r]
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that is stored, low-rank term included."""
        weights = dequantize(self.layout, self.codes, self.codebook, self.scale)
        if self.lowrank_a is not None and self.lowrank_b is not None:
            weights += self.lowrank_b.astype(np.float32) @ self.lowrank_a.astype(np.float32)
        return weights

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors = {f"{name}.codes": self.codes, f"{name}.codebook": self.codebook, f"{name}.scale": self.scale}
        if self.lowrank_a is not None and self.lowrank_b is not None:
            tensors |= {f"{name}.lowrank_a": self.lowrank_a, f"{name}.lowrank_b": self.lowrank_b}
        record = TensorRecord(
            name=name,
            scheme="codebook",
            shape=(self.layout.N, self.layout.K),
            bytes=sum(array.nbytes for array in tensors.values()),
            bits=self.layout.bits,
            group_size=self.layout.group_size,
            rows_per_codebook=self.layout.rows_per_codebook,
            rows_per_scale=self.layout.rows_per_scale,
            rank=0 if self.lowrank_a is None else self.lowrank_a.shape[0],
            scale_dtype=self.scale.dtype.name,
            losses=self.losses,
        )
        return tensors, record


def assemble(
    layout: CodebookLayout, codes: np.ndarray, levels: np.ndarray, scale: np.ndarray, losses: dict[str, float]
) -> QuantizedMatrix:
    """Pack solver output: codes uint8 [N, K], levels holding int8 values, scale already rounded to its dtype."""
    return QuantizedMatrix(
        layout=layout,
        codes=pack(codes, layout.bits),
        codebook=np.ascontiguousarray(levels, dtype=np.int8),
        scale=np.ascontiguousarray(scale),
        losses=losses,
    )


def scale_dtype(smallest: float, largest: float) -> type[np.floating]:
    """float16 where every scale is a normal float16 number, else float32."""
    limits = np.finfo(np.float16)
    return np.float16 if smallest >= float(limits.smallest_normal) and largest <= float(limits.max) else np.float32
