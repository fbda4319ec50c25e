"""Makes a matrix of which each row keeps some weights, as codes (export/contract/formats/sparse_codes.py).

What is kept has the largest |weight| times the norm of its input (Wanda, arXiv 2306.11695). The kept weights first
take over what the others did, by least squares under the full Hessian, and then get codes as in athena.py: clustering,
a sweep in which a dropped weight's error is spread like any rounding error (SparseGPT, arXiv 2301.00774), least-squares
codebooks, and coordinate descent (sparse_rows.py). The baseline is methods/slim.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.sparse_codes import SparseCodesLayout, largest
from export.contract.packing import pack
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.addons.low_rank import low_rank
from toolchain.quantize.packed import CODED_SCALE_BITS, FLOAT_SCALE_COLUMNS, scale_dtype, stored_scales
from toolchain.quantize.solvers.scalar import scale_range
from toolchain.quantize.solvers.sparse_rows import refine, start
from toolchain.settings.format import OVERHEAD_TARGET
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import ordered

_CONJUGATE_STEPS = 60
_SLAB = 512  # rows that are compensated together: several arrays as large as they are held at once


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[SparseCodesLayout, int]:
    """Layout and scale bits for a matrix [rows, columns]: as few rows a codebook as OVERHEAD_TARGET allows.

    With `--method slim` one codebook and one scale for all rows.
    """
    kept, run = settings.kept_of(columns)
    if settings.method == "slim":
        return SparseCodesLayout(settings.width, columns, rows, kept, run, rows, rows), 16
    scale_bits = CODED_SCALE_BITS if columns < FLOAT_SCALE_COLUMNS else 16
    room, shared = OVERHEAD_TARGET - scale_bits / columns, 1
    while shared < rows and 8 * 2**settings.width / (shared * columns) > room:
        shared *= 2
    return SparseCodesLayout(settings.width, columns, rows, kept, run, min(shared, rows), 1), scale_bits


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> StoredMatrix:
    """Quantize weights [N, K] (finite) under the layer Hessian [K, K] (symmetric, positive semi-definite)."""
    w = np.ascontiguousarray(weights, np.float64)
    hessian = hessian if hessian.ndim == 2 else hessian.mean(axis=0)
    layout, scale_bits = choose_layout(w.shape[0], w.shape[1], settings)
    mask = kept_weights(w, hessian, layout)
    h, used, order, factor = ready_hessian(hessian, settings.damping)
    total = max(layer_loss(w, h), 1e-300)
    losses = {"mask": layer_loss(w * (1 - mask), h) / total}
    wanted = compensated(w, mask, h)
    losses["compensation"] = layer_loss(w - wanted, h) / total
    codes, book = np.zeros(w.shape, np.uint8), np.zeros((-(-layout.N // layout.rows_per_codebook), 1 << layout.bits))
    scale, found = np.zeros(layout.N), np.zeros(len(book))
    dtype = scale_dtype(*scale_range(w))
    half, shared = dtype is np.float16 and scale_bits == 16, layout.rows_per_codebook
    start(wanted, mask, h, factor, order, shared, half, codes, book, scale, found)
    losses["sweep"] = losses["compensation"] + found.sum() / total
    refine(wanted, mask, h, shared, False, half, settings.passes, codes, book, scale, found)
    losses["refinement"] = losses["compensation"] + found.sum() / total
    coded: StoredMatrix | None = None
    if scale_bits < 16:
        values, coded = stored_scales(scale, scale_bits)
        scale = np.ascontiguousarray(values[:, 0], np.float64)
        refine(wanted, mask, h, shared, True, half, settings.passes + 1, codes, book, scale, found)
        losses["coded_scales"] = losses["compensation"] + found.sum() / total
    if used != settings.damping:
        losses["damping"] = used
    stored = scale[:, None].astype(np.float32 if coded else dtype)
    result = assembled(layout, mask, codes, book, stored, losses)
    result = result if coded is None else replace(result, coded={"scale": coded})
    return low_rank(result, w, h, settings.rank, total) if settings.rank else result


def kept_weights(w: np.ndarray, hessian: np.ndarray, layout: SparseCodesLayout) -> np.ndarray:
    """The mask uint8 [N, K]: of every run the weights that are largest, each times the norm of its input (Wanda)."""
    norms = np.sqrt(np.maximum(np.diag(hessian), 0.0))
    # what no token has ever reached is dropped by its size
    return largest(np.abs(w) * (norms + 1e-12 * (norms.max() or 1.0)), layout.kept, layout.run)


def compensated(w: np.ndarray, mask: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The weights [N, K] that lose least under the Hessian [K, K] of those that are zero where the mask is.

    Conjugate gradients on many rows at once, each in its own columns. The error that is left is orthogonal to every
    change of the kept weights in the Hessian's metric, so that their codes can be solved for as if these were given.
    """
    slabs = [slice(start, start + _SLAB) for start in range(0, len(w), _SLAB)]
    return np.concatenate(list(ordered(lambda rows: _compensated_rows(w[rows], mask[rows], hessian), slabs)))


def _compensated_rows(w: np.ndarray, mask: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    found = w * mask
    diagonal = np.diag(hessian)
    residual = ((w - found) @ hessian) * mask
    direction = residual / diagonal
    size = np.einsum("nk,nk->n", residual, direction)
    first = size.copy()
    for _ in range(_CONJUGATE_STEPS):
        turned = (direction @ hessian) * mask
        length = np.einsum("nk,nk->n", direction, turned)
        step = np.divide(size, length, out=np.zeros_like(size), where=length > 0)[:, None]
        found += step * direction
        residual -= step * turned
        ready = residual / diagonal
        after = np.einsum("nk,nk->n", residual, ready)
        direction = ready + np.divide(after, size, out=np.zeros_like(size), where=size > 0)[:, None] * direction
        size = after
        if (size <= 1e-10 * first).all():
            break
    return found


def assembled(
    layout: SparseCodesLayout, mask: np.ndarray, codes: np.ndarray, book: np.ndarray, scale: np.ndarray,
    losses: dict[str, float],
) -> StoredMatrix:  # fmt: skip
    """From codes of all columns [N, K], of which those of the mask count."""
    own = codes[mask == 1].reshape(layout.N, layout.kept_columns)
    parts = {
        "mask": pack(mask, 1),
        "codes": pack(own, layout.bits),
        "codebook": np.ascontiguousarray(book, np.int8),
        "scale": np.ascontiguousarray(scale),
    }
    return StoredMatrix(layout, parts, losses={name: float(loss) for name, loss in losses.items()})
