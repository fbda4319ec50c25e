"""The entry point of the cost model: a model folder, a phase and targets in, cost reports out."""

from __future__ import annotations

from pathlib import Path

from export.errors import InputError
from export.reader import read_graph
from hw_model import attentionlego, cpu
from hw_model.result import CostReport
from hw_model.workload import Operation, Phase, operations
from targets import TargetError, load_target

_MODELS = {"cpu": cpu.cost, "attentionlego": attentionlego.cost}


def estimate(folder: Path, targets: list[str], phase_name: str, context: int, profile: str = "rtl") -> list[CostReport]:
    """Cost of one forward pass of the model in `folder` on each target.

    Raises InputError for an unknown target, phase or profile, or a graph with an operator that has no price.
    """
    phase = Phase.of(phase_name, context)
    work = operations(read_graph(folder), phase)
    reports = []
    for name in targets:
        try:
            target = load_target(name)
        except TargetError as error:
            raise InputError(str(error)) from None
        reports.append(_MODELS[target.kind](work, phase, target, profile))
    return reports


def workload(folder: Path, phase_name: str, context: int) -> list[Operation]:
    """The operations of one forward pass, target-independent."""
    return operations(read_graph(folder), Phase.of(phase_name, context))
