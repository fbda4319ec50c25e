"""`cost`: latency, energy and area of one forward pass, from the exported graph."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.costing.options import Folder, Json, Page, opened
from toolchain.cli.signature import with_options
from toolchain.settings.costing.machine import MachineSettings
from toolchain.settings.costing.work import WorkSettings
from toolchain.system.units import engineering

if TYPE_CHECKING:
    from export.artefacts.reader import Graph
    from hw_model.generation import GenerationCost
    from hw_model.graph_work.workload import Phase
    from hw_model.sizing.batch import Curve
    from targets import Target

WORK, AS_IT_IS = WorkSettings(), MachineSettings()


@guarded
@with_options
def cost(
    folder: Folder,
    target: Annotated[
        Optional[list[str]], typer.Option(help="Target name, .toml file, or all; repeatable (rpi5, attentionlego).")
    ] = None,
    work: WorkSettings = WORK,
    machine: MachineSettings = AS_IT_IS,
    batch: Annotated[str, typer.Option(help="Sequences computed together; LOW:HIGH for a table, such as 1:64.")] = "1",
    generate: Annotated[str, typer.Option(help="PROMPT:ANSWER tokens: cost of a whole answer, such as 128:256.")] = "",
    profile: Annotated[str, typer.Option(help="attentionlego: rtl (as published) or ideal.")] = "rtl",
    page: Page = None,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Json = False,
) -> None:
    """Cost of one forward pass: `context` tokens of prefill, or one decode step at that context."""
    from export.artefacts.reader import read_graph
    from hw_model.estimate import price
    from hw_model.graph_work.workload import Phase
    from toolchain.cli.costing.show import overview, print_report, write_cost_page
    from toolchain.report import model_report as report

    low, high = _batches(batch)
    phase, graph = Phase.of(work.phase, work.context, low), read_graph(folder)
    machines = _machines(graph, phase, target, machine, profile, work.objective)
    done = _operations(graph, phase)
    reports = [price(done, phase, one, profile, work.objective) for one in machines]
    generations = _generations(graph, machines, generate, low, profile, work.objective) if generate else []
    turns = _turns(graph, phase, machines, work.objective)
    command = _command(folder, target, work, machine, batch, profile)
    if save and (folder / report.REPORT_JSON).exists():
        report.add_costs(folder, [{**r.to_json(), "command": command} for r in reports])
    if page is not None:
        write_cost_page(page, folder, reports, generations, command, turns)
    curves = [_curve(graph, phase, one, (low, high), profile, work.objective) for one in machines] if high > low else []
    if json:
        first = reports[0]
        headline = {"latency_s": first.latency_s, "energy_j": first.energy_j, "area_mm2": first.area_mm2}
        one = headline if len(reports) == 1 else {}
        many = {"generations": [g.to_json() for g in generations]} if generations else {}
        many |= {"batches": [curve.to_json() for curve in curves]} if curves else {}
        found = {"targets": [r.to_json() for r in reports], "turns": turns}
        print_json({"phase": work.phase, "context": work.context, "batch": low, **one, **found, **many})
        return
    several = f", {low} sequences" if low > 1 else ""
    if curves:
        for curve in curves:
            _print_curve(curve, phase)
    elif len(reports) > 2:
        print_table(f"{work.phase}, context {work.context}{several}", *overview(reports))
    else:
        for r in reports:
            print_report(r)
    for line in turns:
        print(line)
    if generations:
        _print_generations(generations)
    if page is not None:
        print(f"page: {page}")


def _batches(text: str) -> tuple[int, int]:
    """Lowest and highest number of sequences. Raises InputError."""
    from export.contract.errors import InputError

    low, colon, high = text.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in (low, high if colon else low)):
        raise InputError(f"--batch must be a number of sequences, or LOW:HIGH such as 1:64, not {text!r}")
    if colon and not 1 <= int(low) < int(high):
        raise InputError(f"--batch LOW:HIGH must go up from 1, not {text!r}")
    return int(low), int(high if colon else low)


def _machines(
    graph: Graph, phase: Phase, names: list[str] | None, asked: MachineSettings, profile: str, objective: str
) -> list[Target]:
    """The targets as they are to be priced. With `all`, those that cannot be are left out, with the reason."""
    from export.contract.errors import InputError
    from hw_model.estimate import has_rules, price
    from hw_model.sizing.silicon import made
    from targets import target_names

    whole = names == ["all"]
    chosen = opened(target_names() if whole else names or ["rpi5", "attentionlego"], asked)
    work, found = _operations(graph, phase), []
    for target in chosen:
        if (whole or not names) and not has_rules(target, work):
            print(f"no rule for a mixture of experts, left out: {target.name}", file=sys.stderr)
            continue
        try:
            one = made(work, phase, target, asked.square_millimetres, asked.size == "knee", profile, objective)
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


def _operations(graph: Graph, phase: Phase):  # type: ignore[no-untyped-def]
    from export.files.foreign import foreign
    from hw_model.graph_work.workload import operations

    with foreign(graph.folder / "model.onnx", "the graph is malformed"):
        return operations(graph, phase)


def _command(
    folder: Path, names: list[str] | None, work: WorkSettings, machine: MachineSettings, batch: str, profile: str
) -> str:
    """The command that makes the same figures."""
    words = ["athena-export", "cost", str(folder)]
    for name in names or ["rpi5", "attentionlego"]:
        words += ["--target", name]
    words += ["--phase", work.phase, "--context", str(work.context), "--profile", profile]
    words += ["--objective", work.objective]
    words += ["--batch", batch] if batch != "1" else []
    for change in machine.set:
        words += ["--set", change]
    words += ["--area", machine.area] if machine.area else []
    words += ["--size", machine.size] if machine.size != AS_IT_IS.size else []
    return shlex.join(words)


def _turns(graph: Graph, phase: Phase, machines: Sequence[Target], objective: str) -> list[str]:
    """On which assumptions the order of the targets turns, a line for each pair that it does for."""
    from hw_model.ranking import turning

    return turning(_operations(graph, phase), phase, machines, objective) if len(machines) > 1 else []


def _generations(
    graph: Graph, machines: Sequence[Target], lengths: str, sequences: int, profile: str, objective: str
) -> list[GenerationCost]:
    from export.contract.errors import InputError
    from hw_model.generation import generation

    prompt, _, answer = lengths.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in (prompt, answer)):
        raise InputError(f"--generate must be PROMPT:ANSWER in tokens, such as 128:256, not {lengths!r}")
    return [generation(graph, one, int(prompt), int(answer), profile, objective, sequences) for one in machines]


def _print_generations(generations: Sequence[GenerationCost]) -> None:
    rows = [
        [g.target, engineering(g.prefill_s, "s"), engineering(g.decode_s, "s"), engineering(g.seconds, "s"),
         engineering(g.joules, "J"), f"{g.tokens_per_s:,.3g}"]
        for g in generations
    ]  # fmt: skip
    first = generations[0]
    many = f", {first.sequences} sequences together" if first.sequences > 1 else ""
    title = f"an answer of {first.answer} tokens to a prompt of {first.prompt}{many}"
    print_table(title, ["target", "first token", "the others", "total", "energy", "tokens/s"], rows)


def _curve(graph: Graph, phase: Phase, target: Target, span: tuple[int, int], profile: str, objective: str) -> Curve:
    from hw_model.graph_work.workload import Phase
    from hw_model.sizing.batch import curve

    def work(sequences: int):  # type: ignore[no-untyped-def]
        found = Phase.of(phase.name, phase.total, sequences)
        return _operations(graph, found), found

    return curve(work, target, span, profile, objective)


def _print_curve(curve: Curve, phase: Phase) -> None:
    rows = [
        [str(count), engineering(r.latency_s, "s"), f"{r.tokens_per_s:,.4g}",
         engineering(None if r.energy_j is None else r.energy_j / r.tokens, "J"),
         "-" if r.area_mm2 is None else f"{r.area_mm2:,.4g}", r.bound_by]
        for count, r in curve.reports.items()
    ]  # fmt: skip
    columns = ["sequences", "a pass", "tokens/s", "J/token", "area mm2", "bound by"]
    print_table(f"{curve.target}: {phase.name}, context {phase.total}", columns, rows)
    print(curve.knee.line())
