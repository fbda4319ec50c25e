"""Spends a budget where it matters: one width per linear layer, chosen exactly for bytes, time or energy.

The cost of a width is the second-order estimate of the end loss, from the Hessian whose tokens carry their squared
output gradients, so that layers can be compared. Nothing is quantized for it: rounding column after column, later ones
absorbing the errors, leaves the loss sum_j d_j e_j^2 with d_j the variance of column j's input that later columns do
not explain (the diagonal of the Hessian's LDL factors; QuIP, arXiv 2307.13304, section 3), and a code of b bits leaves
a known share of normally distributed weights' variance. The choice is a multiple-choice knapsack, solved exactly on the
Pareto front of (bytes, loss).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from export.artefacts.records import TensorRecord, standard_bytes
from export.contract.errors import InputError
from export.files.access import read_json, write_json
from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.gradients import (
    PLAN_SEQUENCES,
    Gradients,
    evenly_spread,
    measure_gradients,
    with_gradients,
)
from toolchain.calibrate.routing import expert_groups
from toolchain.numerics.factors import ready_hessian
from toolchain.pipeline.blocks.apart import apart
from toolchain.pipeline.blocks.plan import Plan
from toolchain.pipeline.costs import STEPS, Prices
from toolchain.quantize import Method
from toolchain.quantize.addons.columns import STORED_BITS, remaining
from toolchain.quantize.solvers.trellis import LARGE, MOST_BITS
from toolchain.settings.format import MIXED, TRELLIS
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import GRADIENT_METHODS
from toolchain.system.device import CPU, each
from toolchain.system.progress import Reporter
from toolchain.system.units import engineering

PLAN_FILE = "allocation.json"
# Mean squared error of the best levels for a normal distribution of variance one, 1 to 8 bits (Max 1960; from 6 bits on
# 2.72 * 4**-bits), and of trellis codes, 2 to 4 bits (toolchain/quantize/solvers/standard_trellis.py).
_LEVEL_ERRORS = (0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000664, 0.000166, 0.0000415)
_TRELLIS_ERRORS = {2: 0.0799, 3: 0.0218, 4: 0.0061}


def candidate_widths(bits: float) -> list[int]:
    """Widths worth trying for a budget of `bits` effective bits: two below to two above, within 1..8."""
    return [b for b in range(math.floor(bits) - 1, math.ceil(bits) + 2) if 1 <= b <= 8]


def knapsack(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Pick one option per item so that the summed loss is least and the summed size at most `budget`.

    Exact: keeps every non-dominated (size, loss) pair. Returns the options' indices. Raises InputError when even the
    smallest options exceed the budget.
    """
    smallest_rest = np.cumsum([0, *(min(s) for s in reversed(sizes))])[::-1]  # of items i.. on
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for item, (item_losses, item_sizes) in enumerate(zip(losses, sizes)):
        room = budget - int(smallest_rest[item + 1])
        grown = [
            (size + extra, loss + penalty, (*chosen, option))
            for size, loss, chosen in front
            for option, (penalty, extra) in enumerate(zip(item_losses, item_sizes))
            if size + extra <= room
        ]
        grown.sort(key=lambda entry: (entry[0], entry[1]))
        front = []
        for entry in grown:
            if not front or entry[1] < front[-1][1]:
                front.append(entry)
        if not front:
            raise InputError(f"--budget: the budget of {budget} bytes is below the smallest possible size")
    return list(min(front, key=lambda entry: entry[1])[2])


def expected_error(bits: int, trellis: bool) -> float:
    """Share of normally distributed weights' variance that codes of `bits` leave."""
    return _TRELLIS_ERRORS.get(bits, _LEVEL_ERRORS[bits - 1]) if trellis else _LEVEL_ERRORS[bits - 1]


def unexplained(hessian: np.ndarray, damping: float, device: torch.device = CPU) -> float:
    """sum_j d_j of a Hessian [K, K]: what errors of variance one cost when later columns absorb what they can."""
    return float((np.diag(ready_hessian(hessian, damping, device=device).factor) ** -2.0).sum())


def _cost(hessian: np.ndarray, settings: QuantizeSettings, device: torch.device) -> tuple[float, int]:
    """What `unexplained` says of the columns that have codes, and how many have none."""
    columns = 0
    if settings.columns_apart:
        hessian, columns = remaining(hessian, settings.damping)
    return unexplained(hessian, settings.damping, device), columns


def planned(gradients: int, count: int) -> np.ndarray:
    """The numbers of the sequences that a plan looks at; gradients: --gradient-sequences, of which it chooses."""
    known = with_gradients(gradients, count)
    return known[evenly_spread(PLAN_SEQUENCES, len(known))]


def plan_widths(
    runner: BlockRunner, spec: ModelSpec, tokens: np.ndarray, settings: QuantizeSettings, quantizer: Method, out: Path,
    quiet: bool, gradients: Gradients | None = None,
) -> Plan:  # fmt: skip
    """The plan for the budget `settings.effective_budget`; kept in `out` for a resumed run.

    All experts of a block have the same width in the same layer.

    tokens: the calibration sequences [sequences, length], some of which are looked at; gradients: of all of them, where
    they are known.
    """
    path = out / PLAN_FILE
    if path.exists():
        found = read_json(path)
        return Plan(*({n: int(count) for n, count in found.get(key, {}).items()} for key in ("bits", "columns")))
    chosen = planned(settings.gradient_sequences, len(tokens))
    tokens = tokens[chosen]
    if gradients is None:
        gradients = measure_gradients(
            runner.source, spec, tokens, quiet, per_weight=False, precision=runner.precision, device=runner.device
        )
        chosen = np.arange(len(tokens))
    prices = Prices(runner.source.config, spec, settings) if settings.cost_budget else None
    budget = settings.effective_budget
    widths = prices.widths if prices else candidate_widths(budget)
    names, losses, sizes, weights, columns_apart = [], [], [], 0, dict[str, int]()
    known: dict[tuple[int, ...], list[TensorRecord]] = {}  # what a matrix of a shape is stored in, at every width
    hidden = runner.embed(tokens)
    with Reporter("Allocating bits", len(spec.quantizable()), quiet) as report:
        for layer in range(spec.layers):
            block, prefix, modules = runner.load_block(layer), spec.block_name(layer), spec.names(layer)
            guide = {n: gradients.outputs[prefix + n][:, chosen].mean(axis=0) for n in modules.linears()}
            costs, inputs = dict[str, tuple[float, int]](), hidden
            for group in (modules.everyones(), *expert_groups(modules, block)):
                hessians, hidden = runner.hessians(block, group, inputs, guide)
                own = settings if group == modules.everyones() else replace(settings, columns_apart=False)
                cost_of = partial(_cost, settings=own, device=runner.device)
                costs |= zip(hessians, each(cost_of, hessians.values(), runner.device))
            for together in modules.alike():
                cost, apart_bytes, matrices = 0.0, 0, [get_weight(block.get_submodule(name)) for name in together]
                for name, matrix in zip(together, matrices):
                    unexplained_here, columns = costs[name]
                    apart_bytes += columns * len(matrix) * STORED_BITS // 8
                    columns_apart |= {prefix + name: columns} if columns else {}
                    variances = float(np.square(matrix, dtype=np.float64).mean(axis=1).sum())
                    cost += float(guide[name].mean()) * unexplained_here * variances
                    report.step(name)
                shape, size = matrix.shape, matrix.size
                kind = (*shape, len(together) > 1)
                if kind not in known:
                    at = [settings.at_width(b) for b in widths]
                    at = [apart(s, *shape) for s in at] if len(together) > 1 else at
                    known[kind] = [_stored(matrix, s, quantizer, name) for s in at]
                trellis = settings.format == TRELLIS or (settings.format == MIXED and size >= LARGE)
                names.append([prefix + name for name in together])
                losses.append([cost * expected_error(b, trellis and b <= MOST_BITS) for b in widths])
                sizes.append([record.bytes * len(together) + apart_bytes for record in known[kind]])
                weights += size * len(together)
    if prices:
        plan = _within(prices, names, losses)
        modelled = f"{engineering(prices.of(plan), prices.unit)} a token on {prices.target.name}"
        if not quiet:
            print(f"widths for {modelled}", file=sys.stderr)
        write_json(path, {"bits": plan, "modelled": modelled})
        return Plan(plan, {})
    bits = budget - 32 * settings.outliers  # which come on top, of every layer
    tables = standard_bytes([record for records in known.values() for record in records])  # whichever are used
    plan = _chosen(names, widths, knapsack(losses, sizes, int(bits * weights / 8) - tables))
    write_json(path, {"bits": plan, "columns": columns_apart})
    return Plan(plan, columns_apart)


def _chosen(names: Sequence[Sequence[str]], widths: Sequence[int], options: Sequence[int]) -> dict[str, int]:
    return {name: widths[option] for together, option in zip(names, options) for name in together}


def _within(prices: Prices, names: Sequence[Sequence[str]], losses: Sequence[Sequence[float]]) -> dict[str, int]:
    """Widths of least loss whose modelled cost, priced as a whole, is within the budget.

    Parts of a machine that wait for each other make a sum of layers' costs more or less than the whole: the room is
    made smaller until the whole fits, for which the narrowest widths always do.
    """
    sizes, room = [prices.steps(together) for together in names], prices.room
    low = [min(own) for own in sizes]
    sizes = [[size - least for size in own] for own, least in zip(sizes, low)]
    room -= sum(low)
    for _ in range(30):
        plan = _chosen(names, prices.widths, knapsack(losses, sizes, max(room, 0)))
        over = prices.of(plan) / prices.budget - 1
        if over <= 0:
            return plan
        room -= max(int(over * STEPS), 1)
    return _chosen(names, prices.widths, [0] * len(names))


def _stored(matrix: np.ndarray, settings: QuantizeSettings, quantizer: Method, name: str) -> TensorRecord:
    """What a matrix of this shape is stored in, found by rounding it as fast as can be."""
    quick = replace(settings, passes=0, rank=0)
    squares = (np.ones_like(matrix),) if settings.method in GRADIENT_METHODS else ()
    return quantizer(matrix, np.eye(matrix.shape[1]), quick, *squares).stored(name)[1]
