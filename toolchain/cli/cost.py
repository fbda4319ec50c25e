"""`cost`, `sweep` and `targets`: latency, energy and area from the exported graph."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.system.units import engineering

if TYPE_CHECKING:
    from hw_model.generation import GenerationCost
    from hw_model.machines.result import CostReport

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
PhaseName = Annotated[str, typer.Option(help="prefill or decode.")]
Context = Annotated[int, typer.Option(help="Tokens in the context.")]
Objective = Annotated[str, typer.Option(help="What the mapper minimises: latency, energy, or edp (their product).")]
Page = Annotated[Optional[Path], typer.Option(help="Write a page with pictures to this HTML file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@guarded
def cost(
    folder: Folder,
    target: Annotated[
        Optional[list[str]], typer.Option(help="Target name, .toml file, or all; repeatable (rpi5, attentionlego).")
    ] = None,
    phase: PhaseName = "decode",
    context: Context = 1024,
    generate: Annotated[str, typer.Option(help="PROMPT:ANSWER tokens: cost of a whole answer, such as 128:256.")] = "",
    profile: Annotated[str, typer.Option(help="attentionlego: rtl (as published) or ideal.")] = "rtl",
    objective: Objective = "latency",
    page: Page = None,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Json = False,
) -> None:
    """Cost of one forward pass: `context` tokens of prefill, or one decode step at that context."""
    from hw_model.estimate import estimate
    from targets import target_names
    from toolchain.report import model_report as report

    names, chosen = target or ["rpi5", "attentionlego"], bool(target) and target != ["all"]
    names = target_names() if names == ["all"] else names
    reports = estimate(folder, names, phase, context, profile, objective, able_only=not chosen)
    if len(reports) < len(names):
        priced = [r.target for r in reports]
        left_out = ", ".join(name for name in names if name not in priced)
        print(f"no rule for a mixture of experts, left out: {left_out}", file=sys.stderr)
        names = priced
    generations = _generations(folder, names, generate, profile, objective) if generate else []
    turns = _turns(folder, names, phase, context, objective)
    command = f"athena-export cost {shlex.quote(str(folder))} " + " ".join(f"--target {shlex.quote(n)}" for n in names)
    command += f" --phase {phase} --context {context} --profile {profile} --objective {objective}"
    if save and (folder / report.REPORT_JSON).exists():
        report.add_costs(folder, [{**r.to_json(), "command": command} for r in reports])
    if page is not None:
        _write_page(page, folder, reports, generations, command, turns)
    if json:
        first = reports[0]
        headline = {"latency_s": first.latency_s, "energy_j": first.energy_j, "area_mm2": first.area_mm2}
        one = headline if len(reports) == 1 else {}
        many = {"generations": [g.to_json() for g in generations]} if generations else {}
        found = {"targets": [r.to_json() for r in reports], "turns": turns}
        print_json({"phase": phase, "context": context, **one, **found, **many})
        return
    if len(reports) > 2:
        print_table(f"{phase}, context {context}", *_overview(reports))
    else:
        for r in reports:
            _print_report(r)
    for line in turns:
        print(line)
    if generations:
        rows = [
            [g.target, engineering(g.prefill_s, "s"), engineering(g.decode_s, "s"), engineering(g.seconds, "s"),
             engineering(g.joules, "J")]
            for g in generations
        ]  # fmt: skip
        first_generation = generations[0]
        title = f"an answer of {first_generation.answer} tokens to a prompt of {first_generation.prompt}"
        print_table(title, ["target", "first token", "the others", "total", "energy"], rows)
    if page is not None:
        print(f"page: {page}")


def _turns(folder: Path, names: list[str], phase: str, context: int, objective: str) -> list[str]:
    """On which assumptions the order of the targets turns, a line for each pair that it does for."""
    from hw_model.estimate import open_target, workload
    from hw_model.graph_work.workload import Phase
    from hw_model.ranking import turning

    if len(names) < 2:
        return []
    return turning(
        workload(folder, phase, context), Phase.of(phase, context), [open_target(n) for n in names], objective
    )


def _generations(folder: Path, names: list[str], lengths: str, profile: str, objective: str) -> list[GenerationCost]:
    from export.artefacts.reader import read_graph
    from export.contract.errors import InputError
    from hw_model.estimate import open_target
    from hw_model.generation import generation

    prompt, _, answer = lengths.partition(":")
    if not (prompt.isdigit() and answer.isdigit()):
        raise InputError(f"--generate must be PROMPT:ANSWER in tokens, such as 128:256, not {lengths!r}")
    graph = read_graph(folder)
    return [generation(graph, open_target(n), int(prompt), int(answer), profile, objective) for n in names]


def _overview(reports: list[CostReport]) -> tuple[list[str], list[list[str]]]:
    columns = ["target", "latency", "low to high", "energy/token", "low to high", "area mm2", "bound by"]
    rows = [
        [
            r.target,
            engineering(r.latency_s, "s"),
            _span(r.latency_low_s, r.latency_high_s, "s"),
            engineering(_a_token(r.energy_j, r), "J"),
            _span(_a_token(r.energy_low_j, r), _a_token(r.energy_high_j, r), "J"),
            "-" if r.area_mm2 is None else f"{r.area_mm2:,.4g}" if r.area_mm2 < 1000 else f"{r.area_mm2:,.0f}",
            r.bound_by,
        ]
        for r in reports
    ]
    return columns, rows


def _a_token(joules: float | None, report: CostReport) -> float | None:
    return None if joules is None else joules / report.tokens


def _span(low: float | None, high: float | None, unit: str) -> str:
    """292 to 648 us: the unit of the lower one only where it is another."""
    first, last = engineering(low, unit), engineering(high, unit)
    number, _, name = first.partition(" ")
    return f"{number if last.endswith(f' {name}') else first} to {last}"


def _components(report: CostReport) -> tuple[list[str], list[list[str]]]:
    """What every part takes: energy at work, power at rest, area."""
    columns = ["component", "energy", "share", "power at rest", "area mm2"]
    rows = [
        [
            c.name,
            engineering(c.energy_j, "J"),
            f"{100 * c.energy_j / (report.energy_j or 1):.1f} %",
            engineering(c.leakage_w, "W"),
            f"{c.area_mm2:,.3g}" if c.area_mm2 < 1000 else f"{c.area_mm2:,.0f}",
        ]
        for c in report.components
        if c.energy_j or c.area_mm2
    ]
    return columns, rows


def _write_page(
    page: Path, folder: Path, reports: list[CostReport], generations: list[GenerationCost], command: str,
    turns: list[str],
) -> None:  # fmt: skip
    from export.contract.errors import InputError
    from toolchain.report.cost_page import write_page

    try:
        from hw_model import pictures
    except ModuleNotFoundError as error:
        raise InputError(f"--page needs the package {error.name}: pip install 'athena-export[report]'") from None
    data: list[dict[str, Any]] = [r.to_json() for r in reports]
    name = folder.resolve().name
    points = [
        {"model": name, "target": r.target, "latency_s": r.latency_s / r.tokens,
         "energy_j": None if r.energy_j is None else r.energy_j / r.tokens}
        for r in reports
    ]  # fmt: skip
    shown = [
        ("Roofline", pictures.roofline(data)),
        ("Energy by component", pictures.energy_breakdown(data)),
        ("Area by component", pictures.area_breakdown(data)),
        ("Power at rest by component", pictures.rest_breakdown(data)),
        ("Energy by kind of layer", pictures.energy_kinds(data)),
        ("Latency by kind of layer", pictures.kinds(data)),
        ("Latency against energy", pictures.trade(points)),
        ("Latency over the context", pictures.latency_over_context([g.to_json() for g in generations])),
    ]
    notes = [f"{r.target}: {r.basis}. {'. '.join(r.notes)}" for r in reports]
    tables = [(r.target, *_components(r)) for r in reports if len(r.components) > 1]
    write_page(page, f"Cost of {name}", command, shown, *_overview(reports), [*turns, *notes], tables)


def _print_report(r: CostReport) -> None:
    columns = ["kind", "nodes", "MACs", "bytes", "latency", "energy"]
    totals = [sum(values) for values in zip(*((k.nodes, k.macs, k.bytes) for k in r.by_kind))]
    figures = [(k.kind, k.nodes, k.macs, k.bytes, k.latency_s, k.energy_j) for k in r.by_kind]
    figures.append(("total", totals[0], totals[1], totals[2], r.latency_s, r.energy_j))
    rows = [
        [kind, str(nodes), f"{macs:,}", f"{size:,}", engineering(latency, "s"), engineering(energy, "J")]
        for kind, nodes, macs, size, latency, energy in figures
    ]
    print_table(f"{r.target}: {r.phase}, context {r.context}", columns, rows)
    if len(r.components) > 1:
        print_table("", *_components(r))
    print(
        f"{r.tokens_per_s:,.1f} tokens/s; waits for "
        + ", ".join(f"{n} {100 * s:.0f} %" for n, s in r.waits_for.items())
    )
    area = None if r.area_mm2 is None else f"{r.area_low_mm2:,.4g} to {r.area_high_mm2:,.4g} mm2"
    for name, span in (
        ("latency", _span(r.latency_low_s, r.latency_high_s, "s")),
        ("energy", _span(r.energy_low_j, r.energy_high_j, "J")),
        ("area", area),
    ):
        if span:
            turns = f", most by {r.turns_on[name]}" if name in r.turns_on else ""
            print(f"{name} from {span}{turns}")
    if r.load_s is not None:
        print(f"loading the weights once: {engineering(r.load_s, 's')}")
    print(f"{r.basis}")
    for note in r.notes:
        print(f"  - {note}")
    print()


@guarded
def sweep(
    folder: Folder,
    target: Annotated[str, typer.Option(help="Target name or .toml file.")],
    vary: Annotated[list[str], typer.Option(help="NAME=VALUES: 64,128,256 or 3:8 or 0.1:0.5:0.1; repeatable.")],
    phase: PhaseName = "decode",
    context: Context = 1024,
    objective: Objective = "latency",
    page: Page = None,
    json: Json = False,
) -> None:
    """Price every combination of values for some of a target's constants; show those that nothing beats."""
    import math

    from export.artefacts.reader import read_graph
    from hw_model.estimate import open_target
    from hw_model.graph_work.workload import Phase, operations
    from hw_model.sweep import parse_variation
    from hw_model.sweep import sweep as price_all
    from toolchain.system.progress import Reporter

    variations = [parse_variation(text) for text in vary]
    chosen, one = open_target(target), Phase.of(phase, context)
    work = operations(read_graph(folder), one)
    with Reporter("Sweeping", math.prod(len(values) for _, values in variations), quiet=json) as progress:
        points = price_all(work, one, chosen, variations, objective, progress.step)
    data = [point.to_json() for point in points]
    names = [name for name, _ in variations]
    best = sorted((p for p in data if p["best"]), key=lambda p: p["latency_s"])
    columns = [*names, "latency", "energy", "area mm2", "converters"]
    rows = [
        [
            *(f"{p[n]:g}" if isinstance(p[n], float) else str(p[n]) for n in names),
            engineering(p["latency_s"], "s"), engineering(p["energy_j"], "J"),
            "-" if p["area_mm2"] is None else f"{p['area_mm2']:,.1f}", "exact" if p["lossless"] else "lossy",
        ]
        for p in best
    ]  # fmt: skip
    if page is not None:
        _sweep_page(page, folder, target, data, names, columns, rows, phase, context)
    if json:
        print_json({"target": chosen.name, "phase": phase, "context": context, "points": data})
        return
    print_table(
        f"{chosen.name}, {phase} at {context}: {len(best)} of {len(data)} variants that no other beats", columns, rows
    )
    if page is not None:
        print(f"page: {page}")


def _sweep_page(
    page: Path, folder: Path, target: str, data: list[dict[str, Any]], names: list[str], columns: list[str],
    rows: list[list[str]], phase: str, context: int,
) -> None:  # fmt: skip
    from export.contract.errors import InputError
    from toolchain.report.cost_page import write_page

    try:
        from hw_model import pictures
    except ModuleNotFoundError as error:
        raise InputError(f"--page needs the package {error.name}: pip install 'athena-export[report]'") from None
    command = "athena-export " + " ".join(shlex.quote(a) for a in sys.argv[1:])
    title = f"{target} for {folder.resolve().name}, {phase} at {context}: {len(data)} variants"
    write_page(page, title, command, [("Latency, energy, area", pictures.pareto(data, names))], columns, rows)


@guarded
def targets(json: Json = False) -> None:
    """What a model can be costed on (`cost --target`) or lowered to (`lower --target`)."""
    from targets import load_target, target_names
    from targets.lowering import summaries

    costed = [load_target(name) for name in target_names()]
    entries = [{"name": t.name, "kind": t.kind, "summary": t.summary, "use": "cost"} for t in costed]
    entries += [{"name": n, "kind": "graph", "summary": s, "use": "lower"} for n, s in summaries().items()]
    if json:
        print_json({"targets": entries})
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        start = f"{entry['name']:<{width}} {entry['use']:<5} "
        print(_hanging(start, entry["summary"]))


def _hanging(start: str, text: str) -> str:
    """The text behind `start`: wrapped to the terminal, else in one line, as grep wants it."""
    if not sys.stdout.isatty():
        return start + text
    columns = max(shutil.get_terminal_size().columns, len(start) + 20)
    return textwrap.fill(text, columns, initial_indent=start, subsequent_indent=" " * len(start))
