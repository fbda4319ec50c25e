"""The entry point of the cost model: a model folder, a phase and targets in, cost reports out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.files.foreign import foreign
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.machines import attentionlego, cpu, pim, stream
from hw_model.machines.result import CostReport
from targets import Target, TargetError, load_target

OBJECTIVES = ("latency", "energy", "edp")
_ONE_MATRIX_AFTER_ANOTHER = ("pim", "attentionlego")  # kinds of machines whose arrays hold what every token needs
# What no such machine has a rule for, by the kind of operation; of the last two, where their large states are kept.
_RULELESS = {
    "experts": "a mixture of experts",
    "delta rule": "a gated delta rule",
    "state space": "a selective state space",
}


def estimate(
    folder: Path, targets: Sequence[str], phase_name: str, context: int, profile: str = "rtl",
    objective: str = "latency", able_only: bool = False,
) -> list[CostReport]:  # fmt: skip
    """Cost of one forward pass of the model in `folder` on each target; able_only: on those that have rules for it.

    Raises InputError for an unknown target, phase, profile or objective, or a graph with an operator that has no price,
    on one of the targets or at all.
    """
    work, phase = workload(folder, phase_name, context), Phase.of(phase_name, context)
    able = [t for t in map(open_target, targets) if not able_only or has_rules(t, work)]
    return [price(work, phase, target, profile, objective) for target in able]


def price(
    work: Sequence[Operation], phase: Phase, target: Target, profile: str = "rtl", objective: str = "latency",
    ranged: bool = True,
) -> CostReport:  # fmt: skip
    """Cost of operations on one target; ranged: with the ranges of its figures over the target's assumptions.

    Raises InputError for an unknown profile or objective, or a zero divisor.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"--objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
    if not has_rules(target, work):
        what = next(_RULELESS[op.kind] for op in work if op.kind in _RULELESS)
        raise InputError(f"{target.name}: there is no rule for {what} on machines of kind {target.kind}")
    try:
        if target.kind == "cpu":
            return cpu.cost(work, phase, target, ranged)
        if target.kind == "attentionlego":
            return attentionlego.cost(work, phase, target, profile, ranged)
        return {"pim": pim.cost, "stream": stream.cost}[target.kind](work, phase, target, objective, ranged)
    except (ZeroDivisionError, OverflowError, KeyError):
        raise InputError(f"{target.path}: a constant that something is divided by is 0, or out of range") from None


def has_rules(target: Target, work: Sequence[Operation]) -> bool:
    """Whether the target prices everything that this work consists of."""
    return target.kind not in _ONE_MATRIX_AFTER_ANOTHER or all(op.kind not in _RULELESS for op in work)


def open_target(name: str) -> Target:
    """A target by name or file. Raises InputError when it is unknown or not valid."""
    try:
        return load_target(name)
    except TargetError as error:
        raise InputError(str(error)) from None


def workload(folder: Path, phase_name: str, context: int) -> list[Operation]:
    """The operations of one forward pass, target-independent."""
    phase, graph = Phase.of(phase_name, context), read_graph(folder)
    with foreign(folder / "model.onnx", "the graph is malformed"):
        return operations(graph, phase)
