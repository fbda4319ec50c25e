"""`cost`, `sweep`, `mechanisms`, `tasks` and `targets`: latency, energy and area from the exported graph."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.costing.machine import MachineSettings
from toolchain.settings.costing.work import WorkSettings

if TYPE_CHECKING:
    from hw_model.sizing.sweep import Model

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
Page = Annotated[Optional[Path], typer.Option(help="Write a page with pictures to this HTML file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
WORK, AS_IT_IS = WorkSettings(), MachineSettings()
ENCODED = WorkSettings(phase="prefill", context=128)
_UNRANKED = 5  # points of unknown accuracy that are shown below those that are ranked


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
    bits: Annotated[
        Optional[int], typer.Option(help="Width at which nested codes are read; default: all bits.")
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="With --generate: widths of nested codes by step, such as prefill=4,0=4,64=3,256=2.")
    ] = "",
    page: Page = None,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Json = False,
) -> None:
    """Cost of one forward pass: `context` tokens of prefill, or one decode step at that context."""
    from export.artefacts.reader import read_graph
    from export.artefacts.widths import at_width, shape_at
    from hw_model.estimate import price
    from hw_model.graph_work.workload import Phase
    from toolchain.costing import machines, tables
    from toolchain.report import model_report as report

    low, high = machines.batches(batch)
    whole = read_graph(folder)
    graph = at_width(whole, bits, shape_at)
    phase, objective = Phase.of(work.phase, work.context, low), work.objective
    chosen = machines.machines(graph, phase, target, machine, profile, objective)
    done = machines.work_of(graph, phase)
    reports = [price(done, phase, one, profile, objective) for one in chosen]
    prompted, later = machines.scheduled(whole, schedule, bool(generate), bits) if schedule else (graph, [])
    generations = machines.generations(prompted, chosen, generate, low, profile, objective, later) if generate else []
    curves = [machines.curve(graph, phase, one, (low, high), profile, objective) for one in chosen if high > low]
    turns = machines.turns(graph, phase, chosen, objective)
    command = machines.command(folder, target, work, machine, batch, profile, bits)
    if save and (folder / report.REPORT_JSON).exists():
        report.add_costs(folder, [{**r.to_json(), "command": command} for r in reports])
    if page is not None:
        tables.write_cost_page(page, folder, reports, generations, command, turns)
    if json:
        first = reports[0]
        headline = {"latency_s": first.latency_s, "energy_j": first.energy_j, "area_mm2": first.area_mm2}
        found = {"targets": [r.to_json() for r in reports], "turns": turns}
        found |= {"generations": [g.to_json() for g in generations]} if generations else {}
        found |= {"batches": [curve.to_json() for curve in curves]} if curves else {}
        one = headline if len(reports) == 1 else {}
        print_json({"phase": work.phase, "context": work.context, "batch": low, **one, **found})
        return
    for curve in curves:
        print_table(*tables.of_curve(curve, phase))
        print(curve.knee.line())
    if not curves and len(reports) > 2:
        several = f", {low} sequences" if low > 1 else ""
        print_table(f"{work.phase}, context {work.context}{several}", *tables.overview(reports))
    for r in reports if not curves and len(reports) <= 2 else []:
        shown, lines = tables.one_report(r)
        for table in shown:
            print_table(*table)
        print("\n".join(lines))
    for line in turns:
        print(line)
    if generations:
        print_table(*tables.of_generations(generations))
    if page is not None:
        print(f"page: {page}")


@guarded
@with_options
def sweep(
    folder: Annotated[list[Path], typer.Argument(help="Model folders made by `export`; several are compared.")],
    target: Annotated[str, typer.Option(help="Target name or .toml file.")],
    vary: Annotated[
        list[str],
        typer.Option(
            help="NAME=VALUES: 64,128,256 or 3:8 or 12.8GB/s,51.2GB/s; of the target, or context, phase, batch, bits, "
            "target; repeatable."
        ),
    ],
    work: WorkSettings = WORK,
    constants: Annotated[
        Optional[list[str]], typer.Option("--set", help="NAME=VALUE of every variant; repeatable.")
    ] = None,
    page: Page = None,
    json: Json = False,
) -> None:
    """Price every combination of values; show those that nothing beats in latency, energy, area and accuracy."""
    from hw_model.sizing.sweep import Start
    from hw_model.sizing.sweep import sweep as price_all
    from hw_model.sizing.variation import parse_changes, parse_variation
    from toolchain.costing import tables
    from toolchain.report.emulated import divergence
    from toolchain.system.progress import Reporter

    variations, models = [parse_variation(text) for text in vary], _models(folder)
    changes = parse_changes(tuple(constants or ()))
    start = Start(target, work.phase, work.context, objective=work.objective, changes=changes)
    total = len(models) * math.prod(len(values) for _, values in variations)
    with Reporter("Sweeping", total, quiet=json) as progress:
        points = price_all(models, start, variations, divergence, progress.step)
    names = [*(["model"] if len(models) > 1 else []), *(name for name, _ in variations)]
    best = sorted((p for p in points if p.best), key=lambda p: p.report.latency_s)
    unknown = sorted((p for p in points if not p.accuracy.is_known), key=lambda p: p.report.latency_s)
    data, table = [point.to_json() for point in points], tables.of_points(best, names)
    if page is not None:
        title = f"{target} for {', '.join(path.resolve().name for path in folder)}, {work.phase} at {work.context}"
        command = "athena-export " + " ".join(shlex.quote(a) for a in sys.argv[1:])
        tables.write_sweep_page(page, f"{title}: {len(data)} variants", command, data, names, table)
    if json:
        print_json({"target": target, "phase": work.phase, "context": work.context, "points": data})
        return
    found = f"{len(best)} of {len(data)} variants that no other beats"
    print_table(f"{target}, {work.phase} at {work.context}: {found}", *table)
    if unknown:
        title = f"not ranked: {len(unknown)} variants lose accuracy that is not measured (eval --emulate --reference)"
        print_table(title, *tables.of_points(unknown[:_UNRANKED], names))
    if page is not None:
        print(f"page: {page}")


def _models(folders: list[Path]) -> list[Model]:
    """Of several folders, each with the divergence that its report has: their bits differ."""
    from export.artefacts.reader import read_graph
    from export.contract.errors import InputError
    from hw_model.sizing.sweep import Model
    from toolchain.report.emulated import own_divergence

    if len({path.resolve() for path in folders}) < len(folders):
        raise InputError("a folder is named twice")
    return [Model.of(read_graph(path), own_divergence(path) if len(folders) > 1 else None) for path in folders]


Random = Annotated[
    Optional[str],
    typer.Option(help="No FOLDER: random codes at a published shape, such as bert-base, minilm, albert-base."),
]
Bits = Annotated[int, typer.Option(help="--random: bits of the codes.")]
MaybeFolder = Annotated[Optional[Path], typer.Argument(help="Model folder made by `export`.")]


@guarded
@with_options
def mechanisms(
    folder: MaybeFolder = None,
    random: Random = None,
    bits: Bits = 8,
    baseline: Annotated[str, typer.Option(help="Target that the mechanisms are put into.")] = "rap-baseline-shared",
    proposal: Annotated[str, typer.Option(help="Target that has all of them.")] = "rap-shared",
    work: WorkSettings = ENCODED,
    constants: Annotated[
        Optional[list[str]], typer.Option("--set", help="NAME=VALUE of both targets; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """RAP's mechanisms one by one: area, energy and latency, weights resident, at equal arrays and at equal area."""
    from hw_model.claims.mechanisms import compare_by_law, densities
    from hw_model.graph_work.workload import Phase
    from toolchain.costing import claims, machines

    asked = MachineSettings(set=tuple(constants or ()))
    one, other = machines.opened([baseline, proposal], asked)
    phase = Phase.of(work.phase, work.context)
    with claims.opened_graph(folder, random, bits) as graph:
        by_law = compare_by_law(machines.work_of(graph, phase), phase, one, other)
    rows, found = by_law[one.choices["adc_law"]], densities(one, other)
    if json:
        laws = {law: [row.to_json() for row in some] for law, some in by_law.items()}
        print_json({"laws": laws, "law": one.choices["adc_law"], "densities": [vars(density) for density in found]})
        return
    name = random or str(folder)
    print_table(*claims.of_mechanisms(rows, "arrays", f"{name}, {work.phase} of {work.context}: equal arrays"))
    print_table(*claims.of_mechanisms(rows, "area", f"{name}, {work.phase} of {work.context}: equal area"))
    print(claims.under_laws(by_law))
    print_table(*claims.of_densities(found))


@guarded
@with_options
def tasks(
    task: Annotated[
        list[str],
        typer.Option(
            help="NAME:REQUESTS:RANK:MATRIX,MATRIX[:LABELS] of a day, such as sst2:20000:8:query,value, or "
            "NAME:REQUESTS of an adapter that FOLDER has; two or more."
        ),
    ],
    folder: MaybeFolder = None,
    random: Random = None,
    bits: Bits = 8,
    target: Annotated[str, typer.Option(help="Target of kind stream, or .toml file.")] = "hetero-albert",
    context: Annotated[int, typer.Option(help="Tokens of a request.")] = 128,
    mixed: Annotated[bool, typer.Option(help="Requests in random order, not task after task.")] = True,
    constants: Annotated[
        Optional[list[str]], typer.Option("--set", help="NAME=VALUE of the target; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """A day of many tasks on one backbone: adapters in SRAM beside whole models that are reloaded."""
    from hw_model.claims.stored import resolved
    from hw_model.claims.tasks import Task, day, switches
    from hw_model.graph_work.workload import Phase
    from toolchain.costing import claims, machines

    asked, (machine,) = (
        [Task.of(text) for text in task],
        machines.opened([target], MachineSettings(set=tuple(constants or ()))),
    )
    phase = Phase.of("prefill", context)
    with claims.opened_graph(folder, random, bits) as graph:
        days = day(machines.work_of(graph, phase), phase, machine, resolved(graph, asked), mixed)
    if json:
        print_json({"target": machine.name, "context": context, "days": [one.to_json() for one in days]})
        return
    total = sum(one.requests for one in asked)
    title = f"{random or folder} on {machine.name}: {total:,} requests of {context} tokens, {len(asked)} tasks, "
    changes = switches(asked, mixed)
    print_table(*claims.of_days(days, f"{title}{changes:,.0f} switches a day"))
    print(f"models into RRAM write every cell {changes:,.0f} times a day; adapters in SRAM write none of it")


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
