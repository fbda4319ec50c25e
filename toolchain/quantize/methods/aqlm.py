"""AQLM's form (arXiv 2401.06118): every 8 neighbouring weights are a sum of vectors, one from each of `bits` codebooks.

Codebooks have 256 entries, so `--bits 2` is the paper's 2x8 with groups of 8. Codebooks are initialized by residual
k-means, then improved in turn with the codes under the layer Hessian (vector_solver.py: conjugate gradients instead of
Adam, coordinate descent instead of a beam of one). Entries are int8 with a scale for each row.
"""

from __future__ import annotations

import numpy as np

from toolchain.quantize.solvers.vectors import quantize_vectors
from toolchain.quantize.stored.compact import CompactMatrix
from toolchain.settings.quantize import QuantizeSettings

DIMENSION = 8
ENTRY_BITS = 8


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> CompactMatrix:
    """Quantize weights [N, K] under the layer Hessian [K, K]; settings.bits codebooks add up."""
    return quantize_vectors(weights, hessian, settings, DIMENSION, ENTRY_BITS, books=settings.width)
