"""Makes a matrix of trellis codes: a state of a few bits picks the level of every weight (export/trellis.py)."""

from __future__ import annotations

import numpy as np

from export.packing import pack
from export.trellis import TrellisLayout
from toolchain.quantize import trellis_solver
from toolchain.quantize.compact import CODED_SCALE_BITS, FLOAT_SCALE_COLUMNS, CompactMatrix, stored_scales
from toolchain.quantize.hessian import damped, inverse_factor, layer_loss
from toolchain.quantize.settings import QuantizeSettings

MOST_BITS = 4  # from 5 bits on levels lie so close that a trellis gains little
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
    columns = layout.K
    h: np.ndarray
    h, used_damping = damped(hessian, settings.damping)
    order = np.argsort(-np.diag(h), kind="stable")
    factor = inverse_factor(h[np.ix_(order, order)])
    w: np.ndarray = np.ascontiguousarray(weights.T, dtype=np.float64)
    total = max(layer_loss(w.T, h), 1e-300)
    if columns >= FLOAT_SCALE_COLUMNS:  # long rows: half the memory and twice the speed
        w, h, factor = w.astype(np.float32), h.astype(np.float32), factor.astype(np.float32)
    rng = np.random.default_rng(settings.seed)
    parts = [
        slice(a, min(a + layout.rows_per_codebook, layout.N)) for a in range(0, layout.N, layout.rows_per_codebook)
    ]
    problems = [
        trellis_solver.Problem(np.ascontiguousarray(w[:, part]), h, layout.bits, layout.state_bits) for part in parts
    ]
    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    for problem in problems:
        state, found = trellis_solver.solve(problem, factor, order, settings.passes, rng)
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    scale_bits = settings.scale_bits or (CODED_SCALE_BITS if columns < FLOAT_SCALE_COLUMNS else 16)
    scale, coded = stored_scales(np.concatenate([state.scale for state in states]), scale_bits)
    name = "stored_scales" if coded is None else "coded_scales"
    losses[name] = 0.0
    for i, (part, problem, state) in enumerate(zip(parts, problems, states)):
        state.scale = scale[part, 0].astype(w.dtype)
        loss = problem.loss(state)
        passes = settings.passes // 2 + 1 if coded else 0
        states[i], loss = trellis_solver.refined(problem, state, loss, passes, fixed_scale=True)
        losses[name] += loss
    path = np.concatenate([state.states for state in states], axis=1).T
    codes = pack((path & ((1 << layout.bits) - 1)).astype(np.uint8), layout.bits)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state in states]).astype(np.int8)
    return CompactMatrix(layout, codes, book, scale, coded, record)
