"""The commands that take a paper's claim apart: work of a folder or of a published shape, and their tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from hw_model.claims.mechanisms import PUBLISHED, Density, Row
from hw_model.claims.tasks import Day
from toolchain.costing.tables import Table
from toolchain.system.units import engineering


@contextmanager
def opened_graph(folder: Path | None, random: str | None, bits: int) -> Iterator[Graph]:
    """The graph of a model folder, or of random codes at a published shape. Raises InputError for both or none."""
    if (folder is None) == (random is None):
        raise InputError("give either FOLDER or --random SHAPE")
    if folder is not None:
        yield read_graph(folder)
        return
    from toolchain.pipeline.random import write_random_folder
    from toolchain.settings.quantize import QuantizeSettings

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        write_random_folder(str(random), place, QuantizeSettings(bits=bits), force=True, quiet=True)
        yield read_graph(place)


def of_mechanisms(rows: Sequence[Row], equal: str, title: str) -> Table:
    """Variants at equal arrays or area, each with its ratio to the first."""
    shown = [row for row in rows if row.equal == equal]
    first = shown[0]
    lines = [
        [
            row.variant, f"{row.arrays:,}", f"{row.area_mm2:,.4g}{_ratio(row.area_mm2, first.area_mm2)}",
            engineering(row.energy_j, "J") + _ratio(row.energy_j, first.energy_j),
            engineering(row.dynamic_j, "J") + _ratio(row.dynamic_j, first.dynamic_j),
            engineering(row.latency_s, "s") + _ratio(row.latency_s, first.latency_s), row.bound_by,
        ]
        for row in shown
    ]  # fmt: skip
    return title, ["variant", "arrays", "area mm2", "energy", "at work", "latency", "bound by"], lines


def _ratio(value: float, first: float) -> str:
    return f" ({value / first:.2f})" if first else ""


def under_laws(rows: Mapping[str, Sequence[Row]]) -> str:
    """What all mechanisms together take of the baseline's energy, at equal arrays, under each law of the converters."""
    shown = []
    for law, found in rows.items():
        equal = [row for row in found if row.equal == "arrays"]
        first, last = equal[0], equal[-1]
        shown.append(
            f"{law} {last.dynamic_j / first.dynamic_j:.2f} ({last.energy_j / first.energy_j:.2f} with leakage)"
        )
    return f"all three at work against the baseline, by the law of converters' energy: {', '.join(shown)}"


def of_densities(found: Sequence[Density]) -> Table:
    """Arrays beside published macros and chips."""
    rows = [[one.variant, f"{one.tops_per_mm2:.3g}", f"{one.tops_per_watt:.3g}"] for one in (*found, *PUBLISHED)]
    return "arrays alone, 8-bit products", ["array", "TOPS/mm2", "TOPS/W"], rows


def of_days(days: Sequence[Day], title: str) -> Table:
    """Ways to keep the tasks, a row each."""
    rows = [
        [d.way, engineering(d.request_s, "s"), engineering(d.requests * d.request_j, "J"),
         f"{d.switch_bytes / 1e6:,.3g} MB", engineering(d.switch_s, "s"), engineering(d.switches * d.switch_j, "J"),
         engineering(d.rest_j, "J"), engineering(d.joules, "J"), f"{d.area_mm2:,.4g}"]
        for d in days
    ]  # fmt: skip
    columns = ["way", "a request", "requests", "a switch", "takes", "switches", "at rest", "day", "mm2"]
    return title, columns, rows
