"""`sweep`: variants of machines, work and models, and those that nothing beats."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.cli.costing.options import Json, Page
from toolchain.cli.signature import with_options
from toolchain.settings.costing.work import WorkSettings
from toolchain.system.units import engineering

if TYPE_CHECKING:
    from hw_model.sizing.sweep import Model, Point

WORK = WorkSettings()
_UNRANKED = 5  # points of unknown accuracy that are shown below those that are ranked


@guarded
@with_options
def sweep(
    folder: Annotated[list[Path], typer.Argument(help="Model folders made by `export`; several are compared.")],
    target: Annotated[str, typer.Option(help="Target name or .toml file.")],
    vary: Annotated[
        list[str],
        typer.Option(
            help="NAME=VALUES: 64,128,256 or 3:8 or 12.8GB/s,51.2GB/s; of the target, or context, phase, batch, "
            "bits, target; repeatable."
        ),
    ],
    work: WorkSettings = WORK,
    set: Annotated[list[str], typer.Option(help="NAME=VALUE for every variant; repeatable.")] = [],  # noqa: B006
    page: Page = None,
    json: Json = False,
) -> None:
    """Price every combination of values; show those that nothing beats in latency, energy, area and accuracy."""
    from hw_model.sizing.sweep import Start
    from hw_model.sizing.sweep import sweep as price_all
    from hw_model.sizing.variation import parse_changes, parse_variation
    from toolchain.report.emulated import divergence
    from toolchain.system.progress import Reporter

    variations = [parse_variation(text) for text in vary]
    models = _models(folder)
    start = Start(target, work.phase, work.context, objective=work.objective, changes=parse_changes(tuple(set)))
    total = len(models) * math.prod(len(values) for _, values in variations)
    with Reporter("Sweeping", total, quiet=json) as progress:
        points = price_all(models, start, variations, divergence, progress.step)
    names = [*(["model"] if len(models) > 1 else []), *(name for name, _ in variations)]
    best = sorted((p for p in points if p.best), key=lambda p: p.report.latency_s)
    unknown = sorted((p for p in points if not p.accuracy.is_known), key=lambda p: p.report.latency_s)
    columns = [*names, "latency", "energy", "area mm2", "accuracy"]
    rows = [_row(p, names) for p in best]
    data = [point.to_json() for point in points]
    if page is not None:
        _page(page, folder, target, data, names, columns, rows, work)
    if json:
        print_json({"target": target, "phase": work.phase, "context": work.context, "points": data})
        return
    title = f"{target}, {work.phase} at {work.context}: {len(best)} of {len(points)} variants that no other beats"
    print_table(title, columns, rows)
    if unknown:
        print_table(
            f"not ranked: {len(unknown)} variants lose accuracy that is not measured (eval --emulate --reference)",
            columns, [_row(p, names) for p in unknown[:_UNRANKED]],
        )  # fmt: skip
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


def _row(point: Point, names: list[str]) -> list[str]:
    r, values = point.report, point.values
    return [
        *(f"{values[n]:g}" if isinstance(values[n], float) else str(values[n]) for n in names),
        engineering(r.latency_s, "s"), engineering(r.energy_j, "J"),
        "-" if r.area_mm2 is None else f"{r.area_mm2:,.1f}", point.accuracy.text(),
    ]  # fmt: skip


def _page(
    page: Path, folders: list[Path], target: str, data: list[dict[str, Any]], names: list[str], columns: list[str],
    rows: list[list[str]], work: WorkSettings,
) -> None:  # fmt: skip
    from export.contract.errors import InputError
    from toolchain.report.cost_page import write_page

    try:
        from hw_model import pictures
    except ModuleNotFoundError as error:
        raise InputError(f"--page needs the package {error.name}: pip install 'athena-export[report]'") from None
    command = "athena-export " + " ".join(shlex.quote(a) for a in sys.argv[1:])
    name = ", ".join(path.resolve().name for path in folders)
    title = f"{target} for {name}, {work.phase} at {work.context}: {len(data)} variants"
    write_page(page, title, command, [("Latency, energy, area", pictures.pareto(data, names))], columns, rows)
