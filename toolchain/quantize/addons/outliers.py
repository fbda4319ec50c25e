"""Dense and sparse: the few weights that quantization harms most are stored apart, beside any method's result.

SqueezeLLM (arXiv 2306.07629) and GWQ (arXiv 2411.00850) take such weights out before the rest is quantized, chosen by

- `sensitivity`: their square times their column's curvature, the loss that leaving them out would cost;
- `gradient`: their squared gradient of the language-model loss;
- `magnitude`: their size.

The chosen weights are zero in the dense part. What is stored for them is the least-squares correction under the layer
Hessian, row by row: s = H[p, p]^-1 (H e)[p] for the places p and the dense part's error e, never worse than the weights
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from export.contract.sparse import sparse_parts
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize.stored.codebook import weight_dtype
from toolchain.quantize.stored.outliers import Outliers
from toolchain.settings.quantize import QuantizeSettings


def with_outliers(
    quantizer: Callable[..., Any], weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings,
    fisher: np.ndarray | None = None, own: tuple[Any, ...] = (),
) -> Any:  # fmt: skip
    """The method's result for weights [N, K] with settings.outliers of them apart. own: what the method takes besides.

    fisher [N, K]: squared gradients, for the selection by them.
    """
    count = round(settings.outliers * weights.size)
    h, _ = damped(hessian, settings.damping)
    w = weights.astype(np.float64)
    chosen = _chosen(w, h, settings.outliers_by, fisher, count)
    dense = np.where(chosen, 0.0, weights).astype(weights.dtype)
    result = quantizer(dense, hessian, settings, *own)
    error = w - result.dequantized()
    total, share = max(layer_loss(w, h), 1e-300), layer_loss(dense.astype(np.float64), h)
    values = _corrections(error, h, chosen)
    outliers = Outliers(*sparse_parts(np.flatnonzero(chosen), values, weight_dtype(values)))
    losses = {k: v if k == "damping" else v * share / total for k, v in result.losses.items()}
    losses["outliers"] = layer_loss(error - outliers.dense(*weights.shape), h) / total
    return replace(result, outliers=outliers, losses=losses)


def _chosen(w: np.ndarray, h: np.ndarray, selector: str, fisher: np.ndarray | None, count: int) -> np.ndarray:
    """Which weights are stored apart, bool [N, K]."""
    if selector == "gradient":
        assert fisher is not None
        score = fisher.astype(np.float64)
    else:
        score = w**2 if selector == "magnitude" else w**2 * np.diag(h)
    mask = np.zeros(w.size, bool)
    mask[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return mask.reshape(w.shape)


def _corrections(error: np.ndarray, h: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Least-squares values float64 [n] at the chosen places, in row-major order."""
    parts = [np.zeros(0)]
    for row, mask in zip(error, chosen):
        places = np.flatnonzero(mask)
        if places.size:
            parts.append(np.linalg.solve(h[np.ix_(places, places)], h[places] @ row))
    return np.concatenate(parts)
