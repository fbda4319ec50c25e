"""Solver output in stored form: packed codes, scales in the narrowest type that holds them, or as codes themselves."""

from __future__ import annotations

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats import CodebookLayout
from export.contract.packing import pack
from toolchain.numerics.kmeans import kmeans_1d

CODED_SCALE_BITS = 4  # ratios of about 1.15 between levels
FLOAT_SCALE_COLUMNS = 1024  # from this row length on a float16 scale costs under 0.016 bit per weight
_PART = 1 << 22  # numbers that are looked at together


def assemble(
    layout: CodebookLayout, codes: np.ndarray, levels: np.ndarray, scale: np.ndarray, losses: dict[str, float]
) -> StoredMatrix:
    """Pack solver output: codes uint8 [N, K], levels holding int8 values, scale already rounded to its dtype."""
    parts = {
        "codes": pack(codes, layout.bits),
        "codebook": np.ascontiguousarray(levels, dtype=np.int8),
        "scale": np.ascontiguousarray(scale),
    }
    return StoredMatrix(layout, parts, losses=losses)


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


def code_scales(scale: np.ndarray, bits: int) -> StoredMatrix:
    """Scales [N, G] >= 0 as codes: clustered by ratio (k-means of their logarithms), int8 levels, float16 unit.

    Returns the transposed matrix [G, N] in the form of the op contract, so that a CodebookGather decodes it.
    """
    largest = max(float(scale.max()), 1e-30)
    logs = np.log(np.maximum(scale, largest / 127))
    centroids = kmeans_1d(logs.ravel(), np.ones(scale.size), 1 << bits)
    # the highest level is always 127: toolchain/tune/trainable/scale.py finds the unit again from it
    top = float(np.exp(centroids.max()))
    levels = np.unique(np.clip(np.rint(np.exp(centroids) / top * 127), 1, 127))
    levels = np.concatenate([levels, np.full((1 << bits) - levels.size, levels[-1])])
    unit = np.array([[top / 127]]).astype(scale_dtype(top / 127, top))
    codes = np.abs(logs.T[:, :, None] - np.log(levels * float(unit[0, 0]))).argmin(axis=2)
    groups, rows = codes.shape
    layout = CodebookLayout(bits, rows, groups, rows_per_codebook=groups, rows_per_scale=groups)
    return assemble(layout, codes.astype(np.uint8), levels[None, None], unit, {})


def stored_scales(scale: np.ndarray, scale_bits: int) -> tuple[np.ndarray, StoredMatrix | None]:
    """Scales float64 [N] as they are stored: (their values [N, 1], their codes or None)."""
    if scale_bits < 16:
        coded = code_scales(scale[:, None], scale_bits)
        return np.ascontiguousarray(coded.dequantized().T), coded
    return scale[:, None].astype(scale_dtype(float(scale.min()), float(scale.max()))), None
