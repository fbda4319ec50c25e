"""Makes a matrix of nested codes: one code for every weight, that is a code at each width from --nested to --bits.

Weights are clustered at the lowest width and every level is split in two for the next; from there all widths are solved
together under the full Hessian (nested_joint.py). Codes that are solved at the lowest width alone and split afterwards
serve the wide ones badly: error feedback has moved each weight by more than its level's reach, and what a third and a
fourth bit would have to undo is larger than what they can say.
"""

from __future__ import annotations

import numpy as np
import torch

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.nested import NestedLayout, split
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss, row_regions
from toolchain.quantize.packed import CODED_SCALE_BITS, FLOAT_SCALE_COLUMNS, scale_dtype, stored_scales
from toolchain.quantize.solvers.nested_joint import Nest
from toolchain.quantize.solvers.scalar import scale_range
from toolchain.quantize.solvers.scalar_batched import _cluster, _slabs
from toolchain.settings.format import OVERHEAD_TARGET
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import ordered

_SWEEPS = 2  # rounds that begin with a sweep, before --passes rounds without


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[NestedLayout, int]:
    """Layout and scale bits for a matrix [rows, columns]: the fewest rows a codebook within OVERHEAD_TARGET.

    The codebooks of all widths and the scale that they share count.
    """
    scale_bits = settings.scale_bits or (CODED_SCALE_BITS if columns < FLOAT_SCALE_COLUMNS else 16)
    shared = settings.rows_per_codebook
    entries = (2 << settings.width) - (1 << settings.nested)
    if shared == 0:
        room, shared = OVERHEAD_TARGET - scale_bits / columns, 1
        while shared < rows and 8 * entries / (shared * columns) > room:
            shared *= 2
    return NestedLayout(settings.width, columns, rows, settings.nested, min(shared, rows)), scale_bits


def quantize_nested(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> StoredMatrix:
    """Quantize weights [N, K] under the layer Hessian [K, K], or one [groups, K, K] for each run of rows.

    Losses of the record: of each width, relative to dropping the matrix.
    """
    w = np.ascontiguousarray(weights, dtype=np.float64)
    layout, scale_bits = choose_layout(w.shape[0], w.shape[1], settings)
    codes, books = np.zeros(w.shape, np.uint8), np.zeros(layout.codebook_shape)
    scale, losses = np.zeros((layout.N, 1)), np.zeros((len(books), len(layout.widths)))
    half = scale_bits == 16 and scale_dtype(*scale_range(w)) is np.float16
    regions, total, used_damping = [], 1e-300, settings.damping
    for rows, own in row_regions(hessian, layout.N, layout.rows_per_codebook):
        ready = ready_hessian(own, settings.damping)
        regions.append((rows, ready))
        total, used_damping = total + layer_loss(w[rows], ready.h), max(used_damping, ready.damping)
    for rows, ready in regions:
        _solve(layout, rows, ready, w, codes, books, scale, losses, settings.passes, half, start=True)
    stored_scale, coded = stored_scales(scale[:, 0], scale_bits)
    if coded is not None:
        scale[:] = stored_scale
        for rows, ready in regions:
            _solve(layout, rows, ready, w, codes, books, scale, losses, settings.passes + 1, half, start=False)
    leading, planes = split(codes, layout.bits, layout.lowest)
    parts = {"codes": leading, "planes": planes, "codebook": books.astype(np.int8), "scale": stored_scale}
    record = {f"{width} bits": float(losses[:, i].sum() / total) for i, width in enumerate(layout.widths)}
    if used_damping != settings.damping:
        record = {"damping": used_damping, **record}
    return StoredMatrix(layout, parts, {} if coded is None else {"scale": coded}, losses=record)


def _solve(layout, rows, ready, w, codes, books, scale, losses, passes, half, start):  # type: ignore[no-untyped-def]
    """Rows that have a Hessian in common, in place; start: from the weights alone, else with the scales as they are."""
    shared = layout.rows_per_codebook
    turned = torch.from_numpy(ready.h.astype(np.float32))
    factor = torch.from_numpy(ready.factor.astype(np.float32))
    curvature, order = np.diag(ready.h).copy(), np.ascontiguousarray(ready.order)
    offset = rows.start // shared

    def one(part: tuple[slice, slice]) -> None:
        chunks = slice(part[0].start + offset, part[0].stop + offset)
        own = slice(part[1].start + rows.start, part[1].stop + rows.start)
        nest = Nest(layout, w[own], turned, codes[own], books[chunks], scale[own])
        if start:
            book = np.zeros((chunks.stop - chunks.start, 1, 1 << layout.lowest))
            _cluster(w[own], order, curvature, shared, shared > 1, half, codes[own], book, scale[own])
            books[chunks, layout.entries_of(layout.lowest)] = book[:, 0]
            for width in layout.widths[1:]:
                nest.split(width, curvature)
            nest.round(half)
            nest.refine(_SWEEPS, False, half, (factor, order))
        losses[chunks] = nest.refine(passes, not start, half)

    count = -(-(rows.stop - rows.start) // shared)
    for _ in ordered(one, _slabs(count, shared, rows.stop - rows.start)):
        pass
