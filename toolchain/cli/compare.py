"""`compare`: several model folders side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from toolchain.cli.common import guarded, print_json, print_table


@guarded
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Model folders made by `export`, two or more.")],
    page: Annotated[Optional[Path], typer.Option(help="Write the table as a page to this HTML file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bits, size, quality, speed and modelled cost of several folders, from their reports. * marks the best."""
    from export.contract.errors import InputError
    from toolchain.report.compare import compare as side_by_side
    from toolchain.report.cost_page import write_page

    if len(folders) < 2:
        raise InputError("compare needs two folders or more")
    lines = side_by_side(folders)
    names = _names(folders)
    rows = [
        [line.name, *(text + (" *" if i == line.best else "") for i, text in enumerate(line.texts))] for line in lines
    ]
    missing = sorted({line.command for line in lines if line.command})
    notes = [f"what is missing (-) comes from: {command}" for command in missing]
    if page is not None:
        command = "athena-export compare " + " ".join(shlex.quote(str(f)) for f in folders)
        pictures = [("Latency against energy of a token, by target", _trade(folders, names))]
        notes_shown = ["* marks the best of a line", *notes]
        write_page(page, " and ".join(names), command, pictures, ["", *names], rows, notes_shown)
    if json:
        table = {line.name: dict(zip(map(str, folders), line.values)) for line in lines}
        print_json({"folders": [str(f) for f in folders], "figures": table})
        return
    print_table("", ["", *names], rows)
    for note in notes:
        print(note)
    if page is not None:
        print(f"page: {page}")


def _trade(folders: list[Path], names: list[str]) -> str | None:
    """The picture; None where matplotlib (extra `report`) is missing or the reports hold too few costs."""
    from toolchain.report.compare import cost_points

    try:
        from hw_model.pictures import trade
    except ModuleNotFoundError:
        return None
    return trade(cost_points(folders, names))


def _names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
