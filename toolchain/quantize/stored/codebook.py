"""What a quantization method returns for one matrix, and how it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from export.artefacts.checkpoint import TensorRecord
from export.contract.formats.codebook import CodebookLayout, dequantize
from export.contract.packing import pack
from toolchain.numerics.kmeans import kmeans_1d
from toolchain.quantize.stored.outliers import Outliers

_PART = 1 << 22  # numbers that are looked at together


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix [N, K] in the form of the op contract, with an optional residual low-rank term."""

    layout: CodebookLayout
    codes: np.ndarray  # packed, uint8 [N, row_bytes]
    codebook: np.ndarray  # int8 [ceil(N / rows_per_codebook), G, levels]
    scale: np.ndarray  # float16 or float32 [ceil(N / rows_per_scale), G]
    coded_scale: QuantizedMatrix | None = (
        None  # the scales as codes: the transposed matrix [G, N], `scale` is its value
    )
    lowrank_a: np.ndarray | None = None  # float16 [r, K]
    lowrank_b: np.ndarray | None = None  # float16 [N, r]
    outliers: Outliers | None = None
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that is stored, low-rank term included."""
        weights = dequantize(self.layout, self.codes, self.codebook, self.scale)
        if self.lowrank_a is not None and self.lowrank_b is not None:
            weights += self.lowrank_b.astype(np.float32) @ self.lowrank_a.astype(np.float32)
        return weights if self.outliers is None else weights + self.outliers.dense(*weights.shape)

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors = {f"{name}.codes": self.codes, f"{name}.codebook": self.codebook}
        if self.coded_scale is None:
            tensors[f"{name}.scale"] = self.scale
        else:
            tensors |= self.coded_scale.stored(f"{name}.scale")[0]
        if self.lowrank_a is not None and self.lowrank_b is not None:
            tensors |= {f"{name}.lowrank_a": self.lowrank_a, f"{name}.lowrank_b": self.lowrank_b}
        if self.outliers is not None:
            tensors |= self.outliers.stored(name)
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
            scale_dtype=(self.scale if self.coded_scale is None else self.coded_scale.scale).dtype.name,
            scale_bits=None if self.coded_scale is None else self.coded_scale.layout.bits,
            outliers=0 if self.outliers is None else self.outliers.gaps.size,
            outlier_dtype="float16" if self.outliers is None else self.outliers.values.dtype.name,
            losses=self.losses,
        )
        return tensors, record

    @staticmethod
    def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> QuantizedMatrix:
        """Rebuild from a record and its stored parts; tensor(suffix) gives a part, None where there is none."""
        layout = record.layout()
        coded = None
        if record.scale_bits is not None:
            codes, codebook, unit = (tensor(f".scale.{part}") for part in ("codes", "codebook", "scale"))
            assert codes is not None and codebook is not None and unit is not None
            coded = QuantizedMatrix(record.scale_layout(), codes, codebook, unit)
        scale = tensor(".scale") if coded is None else np.ascontiguousarray(coded.dequantized().T)
        packed, book = tensor(".codes"), tensor(".codebook")
        assert packed is not None and book is not None and scale is not None
        low_a, low_b = tensor(".lowrank_a"), tensor(".lowrank_b")
        return QuantizedMatrix(
            layout, packed, book, scale, coded, low_a, low_b, Outliers.restored(tensor), record.losses
        )


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


def weight_dtype(values: np.ndarray) -> type[np.floating]:
    """float16 where it holds the numbers to its 11 bits on the whole, else (too large, or too small) float32."""
    error = total = 0.0
    for part in np.array_split(values.reshape(-1), values.size // _PART + 1):
        wide = part.astype(np.float64)
        with np.errstate(over="ignore"):
            error += float(((wide - part.astype(np.float16)) ** 2).sum())
        total += float((wide**2).sum())
    return np.float16 if error <= 2.0**-20 * total else np.float32


def code_scales(scale: np.ndarray, bits: int) -> QuantizedMatrix:
    """Scales [N, G] >= 0 as codes: clustered by ratio (k-means of their logarithms), int8 levels, float16 unit.

    Returns the transposed matrix [G, N] in the form of the op contract, so that a CodebookGather decodes it.
    """
    largest = max(float(scale.max()), 1e-30)
    logs = np.log(np.maximum(scale, largest / 127))
    centroids = kmeans_1d(logs.ravel(), np.ones(scale.size), 1 << bits)
    top = float(np.exp(centroids.max()))  # the highest level is always 127: trainable.py finds the unit again from it
    levels = np.unique(np.clip(np.rint(np.exp(centroids) / top * 127), 1, 127))
    levels = np.concatenate([levels, np.full((1 << bits) - levels.size, levels[-1])])
    unit = np.array([[top / 127]]).astype(scale_dtype(top / 127, top))
    codes = np.abs(logs.T[:, :, None] - np.log(levels * float(unit[0, 0]))).argmin(axis=2)
    groups, rows = codes.shape
    layout = CodebookLayout(bits, rows, groups, rows_per_codebook=groups, rows_per_scale=groups)
    return assemble(layout, codes.astype(np.uint8), levels[None, None], unit, {})
