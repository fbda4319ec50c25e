"""Machines and work as they were asked for on the command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from export.artefacts.graph import Graph
from export.artefacts.widths import at_width, shape_at
from export.contract.errors import InputError
from export.files.foreign import foreign
from hw_model.estimate import has_rules, open_target, price
from hw_model.generation import GenerationCost, generation
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.ranking import turning
from hw_model.sizing.batch import Curve
from hw_model.sizing.batch import curve as batch_curve
from hw_model.sizing.silicon import made
from hw_model.sizing.variation import parse_changes
from runtime_py.widths.learned import LEARNED
from runtime_py.widths.schedule import Schedule
from targets import CHOICES, Target, TargetError, target_names
from toolchain.settings.costing.machine import KNEE, MachineSettings
from toolchain.settings.costing.work import WorkSettings

DEFAULT = ("rpi5", "attentionlego")  # where no target is named


def opened(names: Sequence[str], asked: MachineSettings) -> list[Target]:
    """Targets with the changes of --set, each where there is such a constant. Raises InputError."""
    changes, found, used = parse_changes(asked.set), [], set[str]()
    for name in names:
        target = open_target(name)
        own = {k: v for k, v in changes.items() if k in target.constants or k in CHOICES.get(target.kind, {})}
        used |= own.keys()
        if own.keys() < changes.keys() and len(names) > 1:
            missing = ", ".join(changes.keys() - own.keys())
            print(f"{target.name}: has no {missing}, stays as it is there", file=sys.stderr)
        try:
            found.append(target.with_changes(own if len(names) > 1 else changes))
        except TargetError as error:
            raise InputError(str(error)) from None
    if unknown := changes.keys() - used:
        raise InputError(f"--set {sorted(unknown)[0]}=: none of the targets has such a constant")
    return found


def batches(text: str) -> tuple[int, int]:
    """Lowest and highest number of sequences. Raises InputError."""
    low, colon, high = text.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in (low, high if colon else low)):
        raise InputError(f"--batch must be a number of sequences, or LOW:HIGH such as 1:64, not {text!r}")
    if colon and not 1 <= int(low) < int(high):
        raise InputError(f"--batch LOW:HIGH must go up from 1, not {text!r}")
    return int(low), int(high if colon else low)


def machines(
    graph: Graph, phase: Phase, names: list[str] | None, asked: MachineSettings, profile: str, objective: str
) -> list[Target]:
    """The targets as they are to be priced. With `all`, those that cannot be are left out, with the reason."""
    whole = names == ["all"]
    chosen = opened(target_names() if whole else names or DEFAULT, asked)
    work, found = work_of(graph, phase), []
    for target in chosen:
        if (whole or not names) and not has_rules(target, work):
            print(f"no rule for a mixture of experts, left out: {target.name}", file=sys.stderr)
            continue
        try:
            one = made(work, phase, target, asked.square_millimetres, asked.size == KNEE, profile, objective)
            if whole:
                price(work, phase, one, profile, objective, ranged=False)
            found.append(one)
        except InputError as error:
            if not whole:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not found:
        raise InputError("none of the targets can be priced like this")
    return found


def work_of(graph: Graph, phase: Phase) -> list[Operation]:
    """The operations of a graph. Raises InputError."""
    with foreign(graph.folder / "model.onnx", "the graph is malformed"):
        return operations(graph, phase)


def command(
    folder: Path, names: list[str] | None, work: WorkSettings, machine: MachineSettings, batch: str, profile: str,
    bits: int | None = None,
) -> str:  # fmt: skip
    """The command that makes the same figures."""
    words = ["athena-export", "cost", str(folder)]
    for name in names or DEFAULT:
        words += ["--target", name]
    words += ["--phase", work.phase, "--context", str(work.context), "--profile", profile]
    words += ["--objective", work.objective]
    words += ["--batch", batch] if batch != "1" else []
    words += ["--bits", str(bits)] if bits is not None else []
    for change in machine.set:
        words += ["--set", change]
    words += ["--area", machine.area] if machine.area else []
    words += ["--size", machine.size] if machine.size != MachineSettings().size else []
    return shlex.join(words)


def turns(graph: Graph, phase: Phase, machines: Sequence[Target], objective: str) -> list[str]:
    """On which assumptions the order of the targets turns, a line for each pair that it does for."""
    return turning(work_of(graph, phase), phase, machines, objective) if len(machines) > 1 else []


def scheduled(whole: Graph, text: str, generates: bool, bits: int | None) -> tuple[Graph, list[tuple[int, Graph]]]:
    """The graph of the prompt and those of steps, by a schedule of widths. Raises InputError where it is none."""
    if not generates or bits is not None:
        raise InputError("--schedule goes with --generate, and not with --bits")
    if text == LEARNED:
        raise InputError(f"--schedule {LEARNED}: where an answer narrows depends on its prompt; give the step instead")
    found = Schedule.read(text)
    if found.confident is not None:
        raise InputError("--schedule: when an answer is confident depends on its text; give the step instead")
    graphs = {width: at_width(whole, width, shape_at) for width in found.widths}
    return graphs[found.prefill], [(step, graphs[width]) for step, width in found.steps]


def generations(
    graph: Graph, machines: Sequence[Target], lengths: str, sequences: int, profile: str, objective: str,
    later: Sequence[tuple[int, Graph]] = (),
) -> list[GenerationCost]:  # fmt: skip
    """Whole answers on each machine. later: see generation(). Raises InputError on what is no pair of lengths."""
    prompt, _, answer = lengths.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in (prompt, answer)):
        raise InputError(f"--generate must be PROMPT:ANSWER in tokens, such as 128:256, not {lengths!r}")
    tokens = int(prompt), int(answer)
    return [generation(graph, one, *tokens, profile, objective, sequences, later) for one in machines]


def curve(graph: Graph, phase: Phase, target: Target, span: tuple[int, int], profile: str, objective: str) -> Curve:

    def work(sequences: int) -> tuple[list[Operation], Phase]:
        found = Phase.of(phase.name, phase.total, sequences)
        return work_of(graph, found), found

    return batch_curve(work, target, span, profile, objective)
