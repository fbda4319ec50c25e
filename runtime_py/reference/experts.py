"""Products with picked experts: one expert after another, each expanded only if some token has it."""

from __future__ import annotations

import numpy as np

from export.contract.formats import CodebookLayout
from export.contract.operators.experts import ExpertLayout
from runtime_py.reference.kernels import codebook_matmul


def expert_matmul(x: np.ndarray, expert: np.ndarray, layout: ExpertLayout, *parts: np.ndarray) -> np.ndarray:
    """float32 [batch, sequence, k, rows]; inputs as in export/contract/operators/experts.py.

    Raises ValueError where something does not fit.
    """
    layout.check_inputs(x.shape, expert)
    wide = np.broadcast_to(x, (*expert.shape, layout.K))
    out = np.empty((*expert.shape, layout.rows), np.float32)
    for number in np.unique(expert):
        own = expert == number
        out[own] = _product(wide[own], layout, layout.parts_of(int(number), *parts))
    return out


def _product(x: np.ndarray, layout: ExpertLayout, parts: list[np.ndarray]) -> np.ndarray:
    """x [tokens, K] with the matrix of one expert."""
    single = layout.single()
    if single is None:
        return x @ parts[0].astype(np.float32).T
    if isinstance(single, CodebookLayout):
        codes, codebook, scale = parts
        return codebook_matmul(x, single, codes, codebook, np.ascontiguousarray(scale, np.float32))
    return x @ single.dequantized(*parts).T
