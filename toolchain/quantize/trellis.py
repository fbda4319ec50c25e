"""Makes a matrix of trellis codes: a state of a few bits picks the level of every weight (export/trellis.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.packing import pack
from export.trellis import TrellisLayout
from toolchain.quantize import trellis_solver
from toolchain.quantize.compact import FLOAT_SCALE_COLUMNS, CompactMatrix, stored_scales
from toolchain.quantize.hessian import damped, inverse_factor, layer_loss, row_regions
from toolchain.quantize.settings import QuantizeSettings
from toolchain.threads import ordered, pieces

MOST_BITS = 4  # from 5 bits on levels lie so close that a trellis gains little
_CODED_SCALE_BITS = 6  # more than scalar codes need: at 4 bits a scale's error costs more than a trellis gains
_MOST_STATE_BITS = 8  # a state is a byte: what gains are left beyond it are small
_ROOM = 0.0625  # bits per weight that a codebook may take
_FEW = 0.02  # bits per weight of codebooks up to which a matrix gets several
_LEAST_ROWS = 128  # paths start anew with every codebook, and their first rows have fewer levels to choose from


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> TrellisLayout | None:
    """Layout for a matrix [rows, columns]: as asked, or the most states within _ROOM. None: too small for any.

    Gaussian weights, mean squared error against one level a code (`python -m tests.benchmarks.trellis_errors`): 3 bits
    0.72 with 6 state bits, 0.65 with 8; 2 bits 0.72 and 0.70.
    """
    bits = settings.width
    if bits > MOST_BITS:
        return None
    most = min(settings.state_bits or _MOST_STATE_BITS, 8 * bits)
    if not settings.state_bits:
        while most > bits and (8 << most) > _ROOM * rows * columns:
            most -= 1
    if most <= bits:
        return None
    shared = settings.rows_per_codebook
    if shared == 0:
        shared = _LEAST_ROWS
        while shared < rows and (8 << most) > _FEW * shared * columns:
            shared *= 2
    return TrellisLayout(bits, columns, rows, most, min(shared, rows))


def quantize_trellis(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, layout: TrellisLayout
) -> CompactMatrix:
    """Quantize weights [N, K] to trellis codes under the layer Hessian [K, K]."""
    long = layout.K >= FLOAT_SCALE_COLUMNS
    kind = np.float32 if long else np.float64  # long rows: half the memory and twice the speed
    parts = pieces(layout.N, layout.rows_per_codebook)
    problems: list[trellis_solver.Problem] = []
    sweeps: list[tuple[np.ndarray, np.ndarray]] = []  # factor and order of each problem
    total, used_damping = 1e-300, settings.damping
    for rows, own in row_regions(hessian, layout.N, layout.rows_per_codebook):
        h, used = damped(own, settings.damping)
        order = np.argsort(-np.diag(h), kind="stable")
        factor = inverse_factor(h[np.ix_(order, order)]).astype(kind)
        total, used_damping = total + layer_loss(weights[rows].astype(np.float64), h), max(used, used_damping)
        h = h.astype(kind)
        for part in parts:
            if rows.start <= part.start < rows.stop:
                w = np.ascontiguousarray(weights[part].T, dtype=kind)
                problems.append(trellis_solver.Problem(w, h, layout.bits, layout.state_bits))
                sweeps.append((factor, order))

    def solve(chunk: int) -> tuple[trellis_solver.State, dict[str, float]]:
        rng = np.random.default_rng((settings.seed, chunk))
        return trellis_solver.solve(problems[chunk], *sweeps[chunk], settings.passes, rng)

    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    for state, found in ordered(solve, range(len(parts))):
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    scale_bits = settings.scale_bits or (16 if long else _CODED_SCALE_BITS)
    scale, coded = stored_scales(np.concatenate([state.scale for state in states]), scale_bits)

    def settle(chunk: int) -> tuple[trellis_solver.State, float]:
        state = replace(states[chunk], scale=scale[parts[chunk], 0].astype(kind))
        passes = settings.passes // 2 + 1 if coded else 0
        return trellis_solver.refined(problems[chunk], state, problems[chunk].loss(state), passes, fixed_scale=True)

    settled = list(ordered(settle, range(len(parts))))
    losses["stored_scales" if coded is None else "coded_scales"] = sum(loss for _, loss in settled)
    path = np.concatenate([state.states for state, _ in settled], axis=1).T
    codes = pack((path & ((1 << layout.bits) - 1)).astype(np.uint8), layout.bits)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state, _ in settled]).astype(np.int8)
    return CompactMatrix(layout, codes, book, scale, coded, losses=record)
