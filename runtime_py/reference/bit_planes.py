"""BitPlaneMatMul for the interpreter: the same integers by one matrix product, exact in float64.

A sum of K products of 8 bits each stays below K * 2**16. The reference, plane by plane, is
export/contract/operators/bit_planes.py.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.graph import Node
from export.contract.operators.bit_planes import BitPlaneLayout, codes_of, odd_numbers, quantized


def by_bit_planes(node: Node, x: np.ndarray, planes: np.ndarray, zero: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [..., N]. Raises KeyError, TypeError or ValueError where attributes and arrays do not fit."""
    layout = BitPlaneLayout.of(node.attributes)
    layout.check(planes, zero, scale)
    if x.shape[-1] != layout.K:
        raise ValueError(f"its input has {x.shape[-1]} columns, not {layout.K}")
    a, a_zero, unit = quantized(x.reshape(-1, layout.K).astype(np.float32), layout)
    w = codes_of(planes, layout.K)
    if layout.bipolar:
        own, theirs = odd_numbers(w, layout.p), odd_numbers(a, layout.q)
    else:
        own, theirs = w - zero.astype(np.int64)[:, None], a - a_zero[:, None]
    sums = np.rint(theirs.astype(np.float64) @ own.T.astype(np.float64)).astype(np.int64)
    out = sums.astype(np.float32) * unit[:, None] * scale
    return out.reshape(*x.shape[:-1], layout.N)
