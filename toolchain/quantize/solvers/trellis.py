"""Makes a matrix of trellis codes: a state of a few bits picks the level of every weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.trellis import ANY, STANDARD_STATE_BITS, SUMS, TrellisLayout
from export.contract.packing import pack
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss, row_regions
from toolchain.quantize.packed import FLOAT_SCALE_COLUMNS, stored_scales
from toolchain.quantize.solvers.viterbi import solver as viterbi
from toolchain.quantize.solvers.viterbi.solver import Problem, State
from toolchain.settings.format import MIXED, SUM_LEVELS
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import ordered, pieces

if TYPE_CHECKING:
    import torch

_FINE_SCALE_COLUMNS = 128
# Smaller matrices gain more from tuning with scalar codes, which follow a gradient more freely (docs/quantizer.md).
LARGE = 1 << 15
MOST_BITS = 4  # from 5 bits on levels lie so close that a trellis gains little
_ROOM = 0.035  # bits per weight that a codebook of its own may cost a matrix; below it takes the standard levels
_FEW = 0.02  # bits per weight of codebooks up to which a matrix gets several
_LEAST_ROWS = 128  # paths start anew with every codebook, and their first rows have fewer levels to choose from


class Solver(Protocol):
    """Solves the problems of one matrix, codebook by codebook or together; results in their order."""

    device: torch.device | None  # where the Hessians are factorized; None: on the processor

    def solve(
        self, problems: Sequence[Problem], sweeps: Sequence[tuple[np.ndarray, np.ndarray]], passes: int, seed: int
    ) -> Iterable[tuple[State, dict[str, float]]]:
        """viterbi.solve for each problem with its factor and order; problem i draws from the seed (seed, i)."""

    def settle(
        self, problems: Sequence[Problem], states: Sequence[State], passes: int
    ) -> Iterable[tuple[State, float]]:
        """viterbi.refined for each problem, scales as they are in its state."""


class InThreads:
    """The solver on the processor."""

    device: torch.device | None = None

    def solve(
        self, problems: Sequence[Problem], sweeps: Sequence[tuple[np.ndarray, np.ndarray]], passes: int, seed: int
    ) -> Iterable[tuple[State, dict[str, float]]]:
        def one(i: int) -> tuple[State, dict[str, float]]:
            return viterbi.solve(problems[i], *sweeps[i], passes, np.random.default_rng((seed, i)))

        return ordered(one, range(len(problems)))

    def settle(
        self, problems: Sequence[Problem], states: Sequence[State], passes: int
    ) -> Iterable[tuple[State, float]]:
        def one(i: int) -> tuple[State, float]:
            return viterbi.refined(problems[i], states[i], problems[i].loss(states[i]), passes, fixed_scale=True)

        return ordered(one, range(len(problems)))


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[TrellisLayout, bool] | None:
    """Layout for a matrix [rows, columns], and whether it takes the standard levels; None: no trellis.

    Normally distributed weights, mean squared error against one level a code: 0.68 at 2 bits, 0.63 at 3, 0.64 at 4
    (`python -m toolchain.quantize.solvers.standard_trellis`; one level: 0.1175, 0.0345, 0.0095).
    """
    bits = settings.width
    if bits > MOST_BITS or (settings.format == MIXED and rows * columns < LARGE):
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
    solver: Solver | None = None, row_weights: np.ndarray | None = None,
) -> StoredMatrix:  # fmt: skip
    """Quantize weights [N, K] to trellis codes under the layer Hessian [K, K]; standard: with the standard levels.

    solver: InThreads unless given. row_weights: float [N] above zero, what squared errors of rows weigh. A path serves
    all rows of a column, so it can spend its bits on those that count. The solvers see rows times the roots of these.
    """
    root = 1.0 if row_weights is None else np.sqrt(row_weights.astype(np.float64))
    weights = np.asarray(weights * np.reshape(root, (-1, 1)), weights.dtype)
    solver, sums = InThreads() if solver is None else solver, settings.levels == SUM_LEVELS
    parts = pieces(layout.N, layout.rows_per_codebook)
    problems: list[Problem] = []  # in float32: losses are those of float64 to seven digits, in four fifths of the time
    sweeps: list[tuple[np.ndarray, np.ndarray]] = []  # factor and order of each problem
    total, used_damping = 1e-300, settings.damping
    for rows, own in row_regions(hessian, layout.N, layout.rows_per_codebook):
        h, used, order, factor = ready_hessian(own, settings.damping, device=solver.device)
        factor = factor.astype(np.float32)
        total, used_damping = total + layer_loss(weights[rows].astype(np.float64), h), max(used, used_damping)
        h = h.astype(np.float32)
        for part in parts:
            if rows.start <= part.start < rows.stop:
                w = np.ascontiguousarray(weights[part].T, dtype=np.float32)
                problems.append(Problem(w, h, layout.bits, layout.state_bits, standard, sums))
                sweeps.append((factor, order))

    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    for state, found in solver.solve(problems, sweeps, settings.passes, settings.seed):
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    found_scales = np.concatenate([state.scale for state in states]).astype(np.float64)
    scale, coded = stored_scales(found_scales / root, scale_bits(layout.K, settings))

    weighed = (scale[:, 0] * root).astype(np.float32)
    states = [replace(state, scale=weighed[part]) for state, part in zip(states, parts)]
    settled = list(solver.settle(problems, states, settings.passes // 2 + 1 if coded else 0))
    losses["stored_scales" if coded is None else "coded_scales"] = sum(loss for _, loss in settled)
    path = np.concatenate([state.states for state, _ in settled], axis=1).T
    codes = pack((path & ((1 << layout.bits) - 1)).astype(np.uint8), layout.bits)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state, _ in settled]).astype(np.int8)
    tables = {"codebook": SUMS if sums else ANY} if standard else {}
    coded_parts = {"scale": coded} if coded else {}
    return StoredMatrix(layout, {"codes": codes, "codebook": book, "scale": scale}, coded_parts, tables, losses=record)
