"""A matrix of razored integers: what qrazor returns for one layer, and how it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from export.artefacts.checkpoint import RAZORED, TensorRecord
from export.contract.operators.integers import IntegerLayout, weight_integers
from export.contract.sdr import unpack_flags
from export.graph.integers import hadamard


@dataclass(frozen=True)
class RazoredMatrix:
    """W [N, K] = scale * (code << flag), rotated in blocks of columns where `rotation` is not 1."""

    layout: IntegerLayout
    codes: np.ndarray  # packed, uint8 [N, row_bytes]
    codebook: np.ndarray  # int8 [1, 1, 2**bits], the code of each bit pattern
    flags: np.ndarray  # uint8 [N or 1, ceil(G / 2)]
    scale: np.ndarray  # float16 or float32 [N, 1]
    rotation: int = 1
    losses: dict[str, float] = field(default_factory=dict)

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that multiplies activations which are not rotated."""
        shifts = unpack_flags(self.flags, self.layout.groups).astype(np.int64)[..., None]
        levels = weight_integers(self.layout, self.codes, self.codebook) << shifts
        weights = levels.reshape(self.layout.N, -1)[:, : self.layout.K] * self.scale.astype(np.float64)
        return rotate_columns(weights, self.rotation).astype(np.float32)

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors = {
            f"{name}.codes": self.codes,
            f"{name}.codebook": self.codebook,
            f"{name}.flags": self.flags,
            f"{name}.scale": self.scale,
        }
        record = TensorRecord(
            name=name,
            scheme=RAZORED,
            shape=(self.layout.N, self.layout.K),
            bytes=sum(array.nbytes for array in tensors.values()),
            bits=self.layout.bits,
            group_size=self.layout.group_size,
            rows_per_codebook=self.layout.rows_per_codebook,
            scale_dtype=self.scale.dtype.name,
            rotation=self.rotation,
            losses=self.losses,
        )
        return tensors, record

    @staticmethod
    def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> RazoredMatrix:
        """Rebuild from a record and its stored parts; tensor(suffix) gives a part."""
        codes, codebook, flags, scale = (tensor(f".{part}") for part in ("codes", "codebook", "flags", "scale"))
        assert codes is not None and codebook is not None and flags is not None and scale is not None
        layout = record.integer_layout(record.group_size)
        return RazoredMatrix(layout, codes, codebook, flags, scale, record.rotation, record.losses)


def rotate_columns(matrix: np.ndarray, size: int) -> np.ndarray:
    """matrix [n, K] times the block-diagonal Hadamard matrix of this block size; its own inverse."""
    if size == 1:
        return matrix
    blocks = matrix.reshape(*matrix.shape[:-1], -1, size)
    return (blocks @ hadamard(size).astype(matrix.dtype)).reshape(matrix.shape)
