"""Several model folders side by side: what their reports hold, in one table. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.foreign import foreign
from toolchain.report.model_report import REPORT_JSON, read_report
from toolchain.system.units import engineering, figure, size_text


@dataclass(frozen=True)
class Line:
    """One figure of every folder; `command` says how to get the missing ones."""

    name: str
    values: tuple[Any, ...]  # a number, or None where a report lacks it
    texts: tuple[str, ...]
    lower_is_better: bool | None = None
    command: str = ""

    @property
    def best(self) -> int | None:
        """Index of the best folder; None when none is better by a thousandth, or too few have the figure."""
        if self.lower_is_better is None:
            return None
        known = [v for v in self.values if v is not None and not math.isnan(v)]
        if len(known) < 2 or min(known) == max(known) or max(known) - min(known) < 1e-3 * abs(max(known)):
            return None
        return self.values.index(min(known) if self.lower_is_better else max(known))


def compare(folders: Sequence[Path]) -> list[Line]:
    """Figures of the folders' reports. Raises InputError when one has no report."""
    for folder in folders:
        if not (folder / REPORT_JSON).is_file():
            raise InputError(f"{folder / REPORT_JSON}: this file is missing; a folder made by `export` was expected")
    reports = [read_report(folder) for folder in folders]
    with foreign(" and ".join(str(folder / REPORT_JSON) for folder in folders), "cannot be compared"):
        return _lines(reports)


def _lines(reports: Sequence[dict[str, Any]]) -> list[Line]:
    lines = [
        _line("source", [r["provenance"]["source"]["name"] for r in reports], str),
        _line("method", [r["provenance"]["settings"].get("method") for r in reports], str),
        _line("effective bits", [r["size"]["effective_bits"] for r in reports], "{:.3f}".format, True),
        _line("model files", [r["size"]["file_bytes"] for r in reports], size_text, True),
    ]
    quality = [r.get("quality") or {} for r in reports]
    texts = {(q.get("text"), q.get("tokens")) for q in quality if q}
    same = len(texts) == 1  # figures on different texts are not comparable
    how = "athena-export eval FOLDER --text FILE --reference MODEL"
    for name, key, show, lower in (
        ("perplexity", "perplexity", lambda v: figure(v, 3), True),
        ("KL to float32", "kl", lambda v: figure(v, 4), True),
        ("top-1 agreement", "top1_agreement", lambda v: f"{100 * v:.1f} %", False),
    ):
        better: bool | None = lower if same else None
        lines.append(_line(name, [q.get(key) for q in quality], show, better, how))
    if not same and texts:
        lines.append(_line("measured on", [q.get("text") for q in quality], str))
    speed = [r.get("speed") or {} for r in reports]
    for name, key in (("decode, tokens/s", "decode"), ("prefill, tokens/s", "prefill")):
        values = [s.get(key, {}).get("tokens_per_s") for s in speed]
        lines.append(_line(name, values, "{:.0f}".format, False, "athena-export bench FOLDER"))
    lines += _costs(reports)
    return lines


def cost_points(folders: Sequence[Path], names: Sequence[str]) -> list[dict[str, Any]]:
    """Latency and energy of one token on every target of the reports: the points of hw_model.pictures.trade."""
    found = []
    for folder, name in zip(folders, names):
        for c in read_report(folder)["cost"]:
            energy = None if c["energy_j"] is None else c["energy_j"] / c["tokens"]
            point = {"model": name, "target": c["target"], "latency_s": c["latency_s"] / c["tokens"]}
            found.append({**point, "energy_j": energy})
    return found


def _costs(reports: Sequence[dict[str, Any]]) -> list[Line]:
    """Latency and energy per token of every target, phase and context that all reports have."""
    tables = [{(c["target"], c["phase"], c["context"]): c for c in r["cost"]} for r in reports]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    lines = []
    for target, phase, context in common:
        costs = [table[target, phase, context] for table in tables]
        name = f"{target}, {phase} {context}"
        lines.append(_line(f"{name}: latency", [c["latency_s"] for c in costs], lambda v: engineering(v, "s"), True))
        joules = [c["energy_j"] / c["tokens"] if c["energy_j"] is not None else None for c in costs]
        lines.append(_line(f"{name}: energy/token", joules, lambda v: engineering(v, "J"), True))
    return lines


def _line(name: str, values: Sequence[Any], show: Any, lower: bool | None = None, command: str = "") -> Line:
    texts = tuple("-" if value is None else show(value) for value in values)
    return Line(name, tuple(values), texts, lower, command if None in values else "")
