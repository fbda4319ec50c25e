"""Spends a bit budget where it matters: one code width per linear layer, chosen exactly under a total-bytes budget.

The cost of a width is the second-order estimate of the end loss: each layer is quantized quickly at every candidate
width, and its error is weighed with the Hessian whose tokens carry their squared output gradients, so that layers can
be compared. The choice is a multiple-choice knapsack, solved exactly on the Pareto front of (bytes, loss).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from export.files.access import read_json, write_json
from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.gradients import Gradients
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize import Method
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.progress import Reporter

PLAN_FILE = "allocation.json"


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
            raise InputError(f"--bits: the budget of {budget} bytes is below the smallest possible size")
    return list(min(front, key=lambda entry: entry[1])[2])


def plan_widths(
    runner: BlockRunner, spec: ModelSpec, tokens: np.ndarray, gradients: Gradients, settings: QuantizeSettings,
    quantizer: Method, out: Path, quiet: bool,
) -> dict[str, int]:  # fmt: skip
    """Code width of every linear layer for the budget `settings.bits`; kept in `out` for a resumed run."""
    path = out / PLAN_FILE
    if path.exists():
        return {name: int(bits) for name, bits in read_json(path)["bits"].items()}
    widths = candidate_widths(settings.bits)
    quick = [replace(settings, bits=b, passes=0, rank=0) for b in widths]
    names, losses, sizes, weights = [], [], [], 0
    hidden = runner.embed(tokens)
    with Reporter("Allocating bits", spec.layers * len(spec.block.linears()), quiet) as report:
        for layer in range(spec.layers):
            block, prefix = runner.load_block(layer), spec.block_name(layer)
            guide = {n: gradients.outputs[prefix + n].mean(axis=0) for n in spec.block.linears()}
            hessians, hidden = runner.hessians(block, spec.block.linears(), hidden, guide)
            for name in spec.block.linears():
                matrix = get_weight(block.get_submodule(name))
                importance = float(guide[name].mean()) * matrix.shape[0]
                results = [quantizer(matrix, hessians[name], s) for s in quick]
                errors = [matrix - r.dequantized().astype(np.float64) for r in results]
                names.append(prefix + name)
                losses.append([importance * layer_loss(e, hessians[name]) for e in errors])
                sizes.append([r.stored(name)[1].bytes for r in results])
                weights += matrix.size
                report.step(name)
    bits = settings.bits - 32 * settings.outliers  # which come on top, of every layer
    chosen = knapsack(losses, sizes, int(bits * weights / 8))
    plan = {name: widths[option] for name, option in zip(names, chosen)}
    write_json(path, {"bits": plan})
    return plan
