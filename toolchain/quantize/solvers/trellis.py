"""Makes a matrix of trellis codes: a state of a few bits picks the level of every weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.trellis import STANDARD_STATE_BITS, TrellisLayout
from export.contract.packing import pack
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss, row_regions
from toolchain.quantize.packed import FLOAT_SCALE_COLUMNS, stored_scales
from toolchain.quantize.solvers import torch_trellis, trellis_solver
from toolchain.settings.format import MIXED
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import ordered, pieces

_FINE_SCALE_COLUMNS = 128
# Smaller matrices gain more from tuning with scalar codes, which follow a gradient more freely (docs/quantizer.md).
_LARGE = 1 << 15
MOST_BITS = 4  # from 5 bits on levels lie so close that a trellis gains little
_ROOM = 0.035  # bits per weight that a codebook of its own may cost a matrix; below it takes the standard levels
_FEW = 0.02  # bits per weight of codebooks up to which a matrix gets several
_LEAST_ROWS = 128  # paths start anew with every codebook, and their first rows have fewer levels to choose from


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[TrellisLayout, bool] | None:
    """Layout for a matrix [rows, columns], and whether it takes the standard levels; None: no trellis.

    Normally distributed weights, mean squared error against one level a code: 0.68 at 2 bits, 0.63 at 3, 0.64 at 4
    (`python -m toolchain.quantize.solvers.standard_trellis`; one level: 0.1175, 0.0345, 0.0095).
    """
    bits = settings.width
    if bits > MOST_BITS or (settings.format == MIXED and rows * columns < _LARGE):
        return None
    state_bits = settings.state_bits or STANDARD_STATE_BITS[bits]
    if not settings.state_bits and (8 << state_bits) > _ROOM * rows * columns:
        return TrellisLayout(bits, columns, rows, state_bits, rows), True
    shared = settings.rows_per_codebook
    if shared == 0:
        shared = _LEAST_ROWS
        while shared < rows and (8 << state_bits) > _FEW * shared * columns:
            shared *= 2
    return TrellisLayout(bits, columns, rows, state_bits, min(shared, rows)), False


def scale_bits(columns: int, settings: QuantizeSettings) -> int:
    """Bits of a row's scale. Six, where four do for scalar codes: its error costs more, the closer the levels fit."""
    if settings.scale_bits:
        return settings.scale_bits
    if columns >= FLOAT_SCALE_COLUMNS:
        return 16
    return 6 if columns >= _FINE_SCALE_COLUMNS else 4


def quantize_trellis(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, layout: TrellisLayout, standard: bool = False,
    device: torch.device | None = None,
) -> StoredMatrix:  # fmt: skip
    """Quantize weights [N, K] to trellis codes under the layer Hessian [K, K]; standard: with the standard levels.

    device: where the form of the solver in torch works (torch_trellis.py); None: the processor.
    """
    long = layout.K >= FLOAT_SCALE_COLUMNS
    kind = np.float32 if long else np.float64  # long rows: half the memory and twice the speed
    parts = pieces(layout.N, layout.rows_per_codebook)
    problems: list[trellis_solver.Problem] = []
    sweeps: list[tuple[np.ndarray, np.ndarray]] = []  # factor and order of each problem
    total, used_damping = 1e-300, settings.damping
    for rows, own in row_regions(hessian, layout.N, layout.rows_per_codebook):
        ready = ready_hessian(own, settings.damping, device=device)
        order, factor, h = ready.order, ready.factor.astype(kind), ready.h.astype(kind)
        total += layer_loss(weights[rows].astype(np.float64), ready.h)
        used_damping = max(ready.damping, used_damping)
        for part in parts:
            if rows.start <= part.start < rows.stop:
                w = np.ascontiguousarray(weights[part].T, dtype=kind)
                problems.append(trellis_solver.Problem(w, h, layout.bits, layout.state_bits, standard))
                sweeps.append((factor, order))

    def solve(chunk: int) -> tuple[trellis_solver.State, dict[str, float]]:
        rng = np.random.default_rng((settings.seed, chunk))
        return trellis_solver.solve(problems[chunk], *sweeps[chunk], settings.passes, rng)

    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    chunks = range(len(parts))
    solved: Iterable[tuple[trellis_solver.State, dict[str, float]]] = ordered(solve, chunks)
    if device is not None:
        solved = torch_trellis.solve(problems, sweeps, settings.passes, settings.seed, device)
    for state, found in solved:
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    scale, coded = stored_scales(np.concatenate([state.scale for state in states]), scale_bits(layout.K, settings))

    states = [replace(state, scale=scale[part, 0].astype(kind)) for state, part in zip(states, parts)]
    passes = settings.passes // 2 + 1 if coded else 0

    def settle(chunk: int) -> tuple[trellis_solver.State, float]:
        problem, state = problems[chunk], states[chunk]
        return trellis_solver.refined(problem, state, problem.loss(state), passes, fixed_scale=True)

    if device is not None:
        settled = torch_trellis.settle(problems, states, passes, device)
    else:
        settled = list(ordered(settle, chunks))
    losses["stored_scales" if coded is None else "coded_scales"] = sum(loss for _, loss in settled)
    path = np.concatenate([state.states for state, _ in settled], axis=1).T
    codes = pack((path & ((1 << layout.bits) - 1)).astype(np.uint8), layout.bits)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state, _ in settled]).astype(np.int8)
    tables = frozenset(["codebook"] if standard else [])
    coded_parts = {"scale": coded} if coded else {}
    return StoredMatrix(layout, {"codes": codes, "codebook": book, "scale": scale}, coded_parts, tables, losses=record)
