"""Makes a matrix of vector codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.vectors import VectorLayout
from export.contract.packing import pack
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize.packed import CODED_SCALE_BITS, FLOAT_SCALE_COLUMNS, stored_scales
from toolchain.quantize.solvers import vector_solver
from toolchain.settings.format import MIXED, VECTORS
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import ordered, pieces

_ROOM = 0.125  # bits per weight that the one codebook of a small matrix may take; the large ones make up for it
_OVERHEAD = 0.06  # bits per weight of scales and codebooks up to which a large matrix gets several


def choose_dimension(rows: int, columns: int, settings: QuantizeSettings) -> int:
    """Weights that one code of a matrix [rows, columns] stands for: as asked, or at 2 bits the most within _ROOM.

    Measured layer losses against scalar codes at equal bits: scribe-6M at 2 bits 0.37 to 0.83 with four weights, at 3
    and 4 bits 0.65 to 1.02 with two; stories260K, whose matrices only have room for two, 0.86 to 0.95 at 2 bits. From
    3 bits on scalars stay the automatic choice: they gain less and lose the memory and speed of codes under 8 bits.
    """
    plain = settings.group_size or settings.rank or settings.razor.activation_bits or settings.razor.razor_codebook
    if settings.format not in (VECTORS, MIXED):
        return 1
    if settings.dimension or plain or settings.width > 2:
        return settings.dimension or 1
    for dimension in (4, 2):
        bits = settings.width * dimension
        if bits <= 8 and 8 * (dimension << bits) <= _ROOM * rows * columns:
            return dimension
    return 1


def choose_layout(
    rows: int, columns: int, settings: QuantizeSettings, dimension: int, bits: int, books: int
) -> tuple[VectorLayout, int]:
    """Layout and scale bits for a matrix [rows, columns]; arguments as of quantize_vectors."""
    scale_bits = settings.scale_bits or (CODED_SCALE_BITS if columns < FLOAT_SCALE_COLUMNS else 16)
    shared = settings.rows_per_codebook or _shared_rows(rows, columns, scale_bits, books * dimension << bits)
    return VectorLayout(bits, columns, rows, dimension, books, min(shared, rows)), scale_bits


def quantize_vectors(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, dimension: int, bits: int, books: int
) -> StoredMatrix:
    """Quantize weights [N, K] to codes of `bits` bits for `dimension` weights, `books` of them added up."""
    w = np.ascontiguousarray(weights, dtype=np.float64)
    rows, columns = w.shape
    h, used_damping = damped(hessian if hessian.ndim == 2 else hessian.mean(axis=0), settings.damping)
    w, h = vector_solver.padded(w, h, dimension)
    layout, scale_bits = choose_layout(rows, columns, settings, dimension, bits, books)
    total = max(layer_loss(w, h), 1e-300)
    parts = pieces(rows, layout.rows_per_codebook)

    def solve(chunk: int) -> tuple[vector_solver.State, dict[str, float]]:
        rng = np.random.default_rng((settings.seed, chunk))
        return vector_solver.solve(w[parts[chunk]], h, dimension, bits, books, settings.passes, rng)

    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    for state, found in ordered(solve, range(len(parts))):
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    scale, coded = stored_scales(np.concatenate([state.scale for state in states]), scale_bits)

    def settle(chunk: int) -> tuple[vector_solver.State, float]:
        state = replace(states[chunk], scale=scale[parts[chunk], 0].astype(np.float64))
        loss = layer_loss(w[parts[chunk]] - state.weights(), h)
        passes = settings.passes // 2 + 1 if coded else 0
        return vector_solver.refined(w[parts[chunk]], h, state, loss, passes, fixed_scale=True)

    settled = list(ordered(settle, range(len(parts))))
    losses["stored_scales" if coded is None else "coded_scales"] = sum(loss for _, loss in settled)
    codes = np.concatenate([state.codes for state, _ in settled]).astype(np.uint8)
    packed = pack(codes.reshape(rows * books, -1), bits).reshape(rows, books, -1)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state, _ in settled]).astype(np.int8)
    coded_parts = {"scale": coded} if coded else {}
    return StoredMatrix(layout, {"codes": packed, "codebook": book, "scale": scale}, coded_parts, losses=record)


def _shared_rows(rows: int, columns: int, scale_bits: int, entries: int) -> int:
    """Rows that share codebooks of `entries` int8 numbers: the fewest (a power of two) within _OVERHEAD."""
    room, shared = _OVERHEAD - scale_bits / columns, 1
    while shared < rows and 8 * entries / (shared * columns) > room:
        shared *= 2
    return shared
