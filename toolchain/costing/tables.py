"""How costs are shown: tables of text and pages with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.system.units import engineering

if TYPE_CHECKING:
    from hw_model.generation import GenerationCost
    from hw_model.graph_work.workload import Phase
    from hw_model.machines.result import CostReport
    from hw_model.sizing.batch import Curve
    from hw_model.sizing.sweep import Point


def overview(reports: list[CostReport]) -> tuple[list[str], list[list[str]]]:
    columns = ["target", "latency", "low to high", "energy/token", "low to high", "area mm2", "bound by"]
    rows = [
        [
            r.target,
            engineering(r.latency_s, "s"),
            span(r.latency_low_s, r.latency_high_s, "s"),
            engineering(a_token(r.energy_j, r), "J"),
            span(a_token(r.energy_low_j, r), a_token(r.energy_high_j, r), "J"),
            "-" if r.area_mm2 is None else f"{r.area_mm2:,.4g}" if r.area_mm2 < 1000 else f"{r.area_mm2:,.0f}",
            r.bound_by,
        ]
        for r in reports
    ]
    return columns, rows


def a_token(joules: float | None, report: CostReport) -> float | None:
    return None if joules is None else joules / report.tokens


def span(low: float | None, high: float | None, unit: str) -> str:
    """292 to 648 us: the unit of the lower one only where it is another."""
    first, last = engineering(low, unit), engineering(high, unit)
    number, _, name = first.partition(" ")
    return f"{number if last.endswith(f' {name}') else first} to {last}"


def components_of(report: CostReport) -> tuple[list[str], list[list[str]]]:
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


def write_cost_page(
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
    tables = [(r.target, *components_of(r)) for r in reports if len(r.components) > 1]
    write_page(page, f"Cost of {name}", command, shown, *overview(reports), [*turns, *notes], tables)


Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def one_report(r: CostReport) -> tuple[list[Table], list[str]]:
    """Everything about one report: tables, then lines."""
    columns = ["kind", "nodes", "MACs", "bytes", "latency", "energy"]
    totals = [sum(values) for values in zip(*((k.nodes, k.macs, k.bytes) for k in r.by_kind))]
    figures = [(k.kind, k.nodes, k.macs, k.bytes, k.latency_s, k.energy_j) for k in r.by_kind]
    figures.append(("total", totals[0], totals[1], totals[2], r.latency_s, r.energy_j))
    rows = [
        [kind, str(nodes), f"{macs:,}", f"{size:,}", engineering(latency, "s"), engineering(energy, "J")]
        for kind, nodes, macs, size, latency, energy in figures
    ]
    tables = [(f"{r.target}: {r.phase}, context {r.context}", columns, rows)]
    if len(r.components) > 1:
        tables.append(("", *components_of(r)))
    waits = ", ".join(f"{n} {100 * s:.0f} %" for n, s in r.waits_for.items())
    lines = [f"{r.tokens_per_s:,.1f} tokens/s; waits for {waits}"]
    area = None if r.area_mm2 is None else f"{r.area_low_mm2:,.4g} to {r.area_high_mm2:,.4g} mm2"
    for name, reach in (
        ("latency", span(r.latency_low_s, r.latency_high_s, "s")),
        ("energy", span(r.energy_low_j, r.energy_high_j, "J")),
        ("area", area),
    ):
        if reach:
            turns = f", most by {r.turns_on[name]}" if name in r.turns_on else ""
            lines.append(f"{name} from {reach}{turns}")
    if r.load_s is not None:
        lines.append(f"loading the weights once: {engineering(r.load_s, 's')}")
    return tables, [*lines, f"{r.basis}", *(f"  - {note}" for note in r.notes), ""]


def of_generations(generations: Sequence[GenerationCost]) -> Table:
    """Whole answers, a row a target."""
    rows = [
        [g.target, engineering(g.prefill_s, "s"), engineering(g.decode_s, "s"), engineering(g.seconds, "s"),
         engineering(g.joules, "J"), f"{g.tokens_per_s:,.3g}"]
        for g in generations
    ]  # fmt: skip
    first = generations[0]
    many = f", {first.sequences} sequences together" if first.sequences > 1 else ""
    title = f"an answer of {first.answer} tokens to a prompt of {first.prompt}{many}"
    return title, ["target", "first token", "the others", "total", "energy", "tokens/s"], rows


def of_curve(curve: Curve, phase: Phase) -> Table:
    """Numbers of sequences, a row each."""
    rows = [
        [str(count), engineering(r.latency_s, "s"), f"{r.tokens_per_s:,.4g}", engineering(a_token(r.energy_j, r), "J"),
         "-" if r.area_mm2 is None else f"{r.area_mm2:,.4g}", r.bound_by]
        for count, r in curve.reports.items()
    ]  # fmt: skip
    columns = ["sequences", "a pass", "tokens/s", "J/token", "area mm2", "bound by"]
    return f"{curve.target}: {phase.name}, context {phase.total}", columns, rows


def of_points(points: Sequence[Point], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Variants of a sweep, a row each."""
    rows = []
    for point in points:
        r, values = point.report, point.values
        shown = [f"{values[n]:g}" if isinstance(values[n], float) else str(values[n]) for n in names]
        area = "-" if r.area_mm2 is None else f"{r.area_mm2:,.1f}"
        rows.append([*shown, engineering(r.latency_s, "s"), engineering(r.energy_j, "J"), area, point.accuracy.text()])
    return [*names, "latency", "energy", "area mm2", "accuracy"], rows


def write_sweep_page(
    page: Path, title: str, command: str, data: list[dict[str, Any]], names: list[str],
    table: tuple[list[str], list[list[str]]],
) -> None:  # fmt: skip
    """A page with the variants of a sweep in one picture. Raises InputError without matplotlib."""
    from export.contract.errors import InputError
    from toolchain.report.cost_page import write_page

    try:
        from hw_model import pictures
    except ModuleNotFoundError as error:
        raise InputError(f"--page needs the package {error.name}: pip install 'athena-export[report]'") from None
    write_page(page, title, command, [("Latency, energy, area", pictures.pareto(data, names))], *table)
