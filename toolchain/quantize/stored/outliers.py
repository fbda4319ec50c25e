"""The sparse part of a quantized matrix: how it is stored and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from export.contract.sparse import SparseLayout


@dataclass(frozen=True)
class Outliers:
    """The sparse part of one matrix, in the form of export/contract/sparse.py."""

    gaps: np.ndarray  # uint16 [n]
    values: np.ndarray  # float16 or float32 [n]

    def dense(self, rows: int, columns: int) -> np.ndarray:
        """float32 [rows, columns]."""
        return SparseLayout(columns, rows).dense(self.gaps, self.values)

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """Tensors by checkpoint name."""
        return {f"{name}.outlier_gaps": self.gaps, f"{name}.outlier_values": self.values}

    @staticmethod
    def restored(tensor: Callable[[str], np.ndarray | None]) -> Outliers | None:
        """From stored parts; tensor(suffix) gives one, None where there is none."""
        gaps, values = tensor(".outlier_gaps"), tensor(".outlier_values")
        return None if gaps is None or values is None else Outliers(gaps, values)


def sparse_weight(outliers: Outliers | None, rows: int, columns: int) -> torch.Tensor | None:
    """The sparse part as a constant float32 [rows, columns]; None where there is none."""
    return None if outliers is None else torch.from_numpy(outliers.dense(rows, columns))
