"""Athena: inverse-Hessian guided codebook quantization (arXiv 2405.17470), in the form of the op contract.

Per matrix: curvature-weighted k-means gives each codebook, its entries are rounded to int8 at once, columns are then
rounded in order of curvature while all later columns absorb the error through the inverse Hessian, and rounds of
least-squares codebooks and coordinate descent on the codes lower the same objective ||(W - W') X||^2 further
(LNQ, arXiv 2505.07004). What is left can be stored as a low-rank term in the Hessian's metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.codebook import CodebookLayout
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss, row_regions
from toolchain.quantize.addons.low_rank import low_rank
from toolchain.quantize.packed import CODED_SCALE_BITS, FLOAT_SCALE_COLUMNS, assemble, code_scales, scale_dtype
from toolchain.quantize.solvers import razored_entries as entries
from toolchain.quantize.solvers import scalar_batched as batched
from toolchain.quantize.solvers.nested import quantize_nested
from toolchain.quantize.solvers.on_device.scalar import TorchScalar
from toolchain.quantize.solvers.on_device.trellis import TorchTrellis
from toolchain.quantize.solvers.scalar import refine, scale_range, sort_codebooks, start
from toolchain.quantize.solvers.trellis import InThreads, quantize_trellis
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.quantize.solvers.vectors import choose_dimension, quantize_vectors
from toolchain.settings.format import OVERHEAD_TARGET
from toolchain.settings.quantize import QuantizeSettings

_BATCHED_COLUMNS = 256  # from this row length on many rows are solved together, in float32 (scalar_batched.py)


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[CodebookLayout, int]:
    """Layout and scale bits for a matrix [rows, columns]: as asked, or the fewest rows a codebook within the overhead.

    Every row has its own scale, because rows differ in magnitude far more than in the shape of their distribution
    (measured on stories260K at 3 bits: perplexity 1.99x float32 with shared scales, 1.37x with scales per row). A
    float16 scale would cost 0.25 bit per weight at 64 columns, so short rows have theirs coded. The automatic choice
    takes the smallest power of two of rows per codebook for which everything beside the codes costs at most
    OVERHEAD_TARGET bits per weight.
    """
    width = min(settings.group_size, columns) or columns
    groups = math.ceil(columns / width)
    scale_bits = settings.scale_bits or (CODED_SCALE_BITS if columns < FLOAT_SCALE_COLUMNS else 16)
    shared = settings.rows_per_codebook
    if shared == 0:
        room = OVERHEAD_TARGET - scale_bits * groups / columns
        shared = 1
        while shared < rows and 8 * 2**settings.width * groups / (shared * columns) > room:
            shared *= 2
    layout = CodebookLayout(
        bits=settings.width,
        K=columns,
        N=rows,
        group_size=0 if width >= columns else width,
        rows_per_codebook=min(shared, rows),
        rows_per_scale=1,
    )
    return layout, scale_bits


def quantize(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, device: torch.device | None = None,
    row_weights: np.ndarray | None = None,
) -> StoredMatrix:  # fmt: skip
    """Quantize weights [N, K] (finite) under the layer Hessian [K, K] (symmetric, positive semi-definite).

    A Hessian [groups, K, K] holds one for every run of rows (GuidedQuant, arXiv 2505.07004). device: where the solvers'
    forms in torch work; None: the processor, which also solves what has no such form (vectors, nested codes, groups of
    columns).
    """
    if settings.nested:
        return quantize_nested(weights, hessian, settings)
    if settings.uses_trellis and (trellis := choose_trellis(weights.shape[0], weights.shape[1], settings)) is not None:
        by = InThreads() if device is None else TorchTrellis(device)
        return quantize_trellis(weights, hessian, settings, *trellis, by, row_weights)
    dimension = choose_dimension(weights.shape[0], weights.shape[1], settings)
    if dimension > 1:
        return quantize_vectors(weights, hessian, settings, dimension, settings.width * dimension, books=1)
    w = np.ascontiguousarray(weights, dtype=np.float64)
    layout, scale_bits = choose_layout(w.shape[0], w.shape[1], settings)
    shared, own_scales = layout.rows_per_codebook, layout.rows_per_codebook > 1
    regions = [_Region.of(rows, h, layout, settings, device) for rows, h in row_regions(hessian, layout.N, shared)]
    group_of = np.arange(layout.K) // layout.columns_per_group

    chunks, groups, levels = layout.codebook_shape
    codes = np.zeros(w.shape, np.uint8)
    book = np.zeros((chunks, groups, levels))
    scale = np.zeros((layout.N, groups))
    started, refined = np.zeros((chunks, 2)), np.zeros(chunks)
    dtype = scale_dtype(*scale_range(w))
    half = dtype is np.float16 and scale_bits == 16
    in_batches = layout.groups == 1 and (device is not None or layout.K >= _BATCHED_COLUMNS)
    solver = batched if device is None else TorchScalar(device)

    step: np.ndarray | None = None  # of razored codebooks
    form = settings.razor.entry_format(1 << settings.width)

    def refine_all(fixed_scale: bool, passes: int) -> None:
        for region in regions:
            rows, books = region.rows, region.chunks(shared)
            state = codes[rows], book[books], scale[rows], refined[books]
            if step is not None:
                limit, own = form.code_limit, step[books]
                entries.refine(w[rows], region.h, group_of, shared, own, limit, fixed_scale, half, passes, *state)
            elif in_batches:
                solver.refine(w[rows], region.h, shared, fixed_scale, own_scales, half, passes, *state)
            else:
                refine(w[rows], region.h, group_of, shared, fixed_scale, own_scales, half, passes, *state)

    for region in regions:
        rows, books = region.rows, region.chunks(shared)
        state = codes[rows], book[books], scale[rows], started[books]
        given = w[rows], region.h, region.factor, region.order, np.diag(region.h).copy()
        if in_batches:
            solver.start(*given, shared, own_scales, half, *state)
        else:
            start(*given, group_of, shared, own_scales, half, *state)
    refine_all(False, settings.passes)
    losses = {"clustering": started[:, 0].sum(), "sweep": started[:, 1].sum(), "refinement": refined.sum()}
    if settings.razor.razor_codebook:
        step = entries.razor_entries(book, scale, shared, form)
        if half:
            scale[:] = scale.astype(np.float16)
        refine_all(False, settings.passes)
        losses["razored_entries"] = refined.sum()
    coded = None
    if scale_bits < 16:
        coded = code_scales(scale, scale_bits)
        scale = np.ascontiguousarray(coded.dequantized().T, dtype=np.float64)
        refine_all(True, settings.passes + 1)
        losses["coded_scales"] = refined.sum()
    sort_codebooks(group_of, shared, codes, book)
    total = max(sum(layer_loss(w[region.rows], region.h) for region in regions), 1e-300)
    record = {name: float(loss / total) for name, loss in losses.items()}
    used_damping = max(region.damping for region in regions)
    if used_damping != settings.damping:
        record["damping"] = used_damping
    stored_scale = scale.astype(np.float32 if coded else dtype)
    result = replace(
        assemble(layout, codes, book, stored_scale, record), coded={} if coded is None else {"scale": coded}
    )
    if settings.rank > 0:
        result = low_rank(result, w, regions[0].h, settings.rank, total)  # one region: settings.py
    return result


@dataclass(frozen=True)
class _Region:
    """Rows that have a Hessian in common, and what the sweep needs of it."""

    rows: slice
    h: np.ndarray  # damped
    damping: float
    order: np.ndarray  # of the columns in the sweep
    factor: np.ndarray  # inverse_factor of h in that order

    @staticmethod
    def of(
        rows: slice, hessian: np.ndarray, layout: CodebookLayout, settings: QuantizeSettings,
        device: torch.device | None,
    ) -> _Region:  # fmt: skip
        # With one codebook a row the sweep may take any order; groups are fitted when reached, so they keep theirs.
        return _Region(rows, *ready_hessian(hessian, settings.damping, layout.groups == 1, device))

    def chunks(self, shared: int) -> slice:
        """The codebooks of these rows, `shared` rows each."""
        return slice(self.rows.start // shared, -(-self.rows.stop // shared))
