"""A matrix of vector or trellis codes: what a method returns for it, how it is stored and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from export.artefacts.checkpoint import TRELLIS, VECTORS, TensorRecord
from export.contract.formats.compact import CompactLayout
from export.contract.formats.trellis import standard_levels
from export.contract.formats.vectors import VectorLayout
from toolchain.quantize.stored.codebook import QuantizedMatrix, code_scales, scale_dtype
from toolchain.quantize.stored.outliers import Outliers

CODED_SCALE_BITS = 4
FLOAT_SCALE_COLUMNS = 1024  # as in athena.py: from this row length on a float16 scale costs little


def _own_fields(layout: CompactLayout) -> dict[str, int]:
    if isinstance(layout, VectorLayout):
        return {"dimension": layout.dimension, "books": layout.books}
    return {"state_bits": layout.state_bits}


def stored_scales(scale: np.ndarray, scale_bits: int) -> tuple[np.ndarray, QuantizedMatrix | None]:
    """Scales float64 [N] as they are stored: (their values [N, 1], their codes or None)."""
    if scale_bits < 16:
        coded = code_scales(scale[:, None], scale_bits)
        return np.ascontiguousarray(coded.dequantized().T), coded
    return scale[:, None].astype(scale_dtype(float(scale.min()), float(scale.max()))), None


@dataclass(frozen=True)
class CompactMatrix:
    """One matrix [N, K] of vector or trellis codes."""

    layout: CompactLayout
    codes: np.ndarray  # packed, uint8 layout.codes_shape
    codebook: np.ndarray  # int8 layout.codebook_shape
    scale: np.ndarray  # float16 or float32 [N, 1]
    coded_scale: QuantizedMatrix | None = None  # the scales as codes: [1, N], `scale` is its value
    outliers: Outliers | None = None
    standard_levels: bool = False  # the codebook is that of every such matrix of the model and not stored here
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that is stored."""
        weights = self.layout.dequantized(self.codes, self.codebook, self.scale)
        return weights if self.outliers is None else weights + self.outliers.dense(*weights.shape)

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors = {f"{name}.codes": self.codes}
        if not self.standard_levels:
            tensors[f"{name}.codebook"] = self.codebook
        if self.coded_scale is None:
            tensors[f"{name}.scale"] = self.scale
        else:
            tensors |= self.coded_scale.stored(f"{name}.scale")[0]
        if self.outliers is not None:
            tensors |= self.outliers.stored(name)
        record = TensorRecord(
            name=name,
            scheme=VECTORS if isinstance(self.layout, VectorLayout) else TRELLIS,
            shape=(self.layout.N, self.layout.K),
            bytes=sum(array.nbytes for array in tensors.values()),
            bits=self.layout.bits,
            rows_per_codebook=self.layout.rows_per_codebook,
            rows_per_scale=self.layout.rows_per_scale,
            scale_dtype=(self.scale if self.coded_scale is None else self.coded_scale.scale).dtype.name,
            scale_bits=None if self.coded_scale is None else self.coded_scale.layout.bits,
            **_own_fields(self.layout),
            standard_levels=self.standard_levels,
            outliers=0 if self.outliers is None else self.outliers.gaps.size,
            outlier_dtype="float16" if self.outliers is None else self.outliers.values.dtype.name,
            losses=self.losses,
        )
        return tensors, record

    @staticmethod
    def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> CompactMatrix:
        """Rebuild from a record and its stored parts; tensor(suffix) gives a part, None where there is none."""
        coded = None
        if record.scale_bits is not None:
            codes, codebook, unit = (tensor(f".scale.{part}") for part in ("codes", "codebook", "scale"))
            assert codes is not None and codebook is not None and unit is not None
            coded = QuantizedMatrix(record.scale_layout(), codes, codebook, unit)
        scale = tensor(".scale") if coded is None else np.ascontiguousarray(coded.dequantized().T)
        packed, book = tensor(".codes"), tensor(".codebook")
        if record.standard_levels:
            book = standard_levels(record.bits or 0)[None]
        assert packed is not None and book is not None and scale is not None
        return CompactMatrix(
            record.compact_layout(),
            packed,
            book,
            scale,
            coded,
            Outliers.restored(tensor),
            record.standard_levels,
            record.losses,
        )
