"""Sequences computed together: what each of them costs, and from how many on they stop to share.

While the bytes of the weights are waited for, a sequence more costs little; from the knee on each one costs its own
arithmetic. Both ends are straight lines over the number of sequences, which the knee is the crossing of; keys and
values, which every sequence has for itself, are in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.result import CostReport
from targets import Target

_FAR = 2**14  # sequences: far beyond every knee
Priced = Callable[[int], CostReport]
Work = Callable[[int], tuple[Sequence[Operation], Phase]]  # of so many sequences


@dataclass(frozen=True)
class Knee:
    """Where sequences stop to share, in sequences; None where it never comes or was never before."""

    machine: float | None  # of the modelled latency
    roofline: float | None  # of peak arithmetic and memory bandwidth alone

    def line(self) -> str:
        """For people."""
        shown = ["none" if found is None else f"{found:.3g} sequences" for found in (self.machine, self.roofline)]
        return f"knee: {shown[0]}; by peak arithmetic and bandwidth alone: {shown[1]}"


@dataclass(frozen=True)
class Curve:
    """Reports by the number of sequences, and the knee."""

    target: str
    reports: dict[int, CostReport]
    knee: Knee

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"sequences": n, "latency_s": r.latency_s, "tokens_per_s": r.tokens_per_s, "area_mm2": r.area_mm2,
             "energy_j_per_token": None if r.energy_j is None else r.energy_j / r.tokens, "bound_by": r.bound_by}
            for n, r in self.reports.items()
        ]  # fmt: skip
        return {"target": self.target, "knee": asdict(self.knee), "points": rows}


def curve(work: Work, target: Target, span: tuple[int, int], profile: str = "rtl", objective: str = "latency") -> Curve:
    """Costs of span[0] to span[1] sequences, doubling."""

    @cache
    def priced(sequences: int) -> CostReport:
        return price(*work(sequences), target, profile, objective, ranged=False)

    return Curve(target.name, {n: priced(n) for n in counts(*span)}, knee(priced, work(1)[0]))


def counts(low: int, high: int) -> tuple[int, ...]:
    """low, then its doubles, and high."""
    found = [low]
    while found[-1] * 2 < high:
        found.append(found[-1] * 2)
    return tuple(found if found[-1] == high else [*found, high])


def knee(priced: Priced, one: Sequence[Operation]) -> Knee:
    """priced: the report for a number of sequences; one: the work of a single one."""
    near = [priced(count).latency_s for count in (1, 2)]
    far = [priced(count).latency_s for count in (_FAR, 2 * _FAR)]
    slope, steep = near[1] - near[0], (far[1] - far[0]) / _FAR
    flat, start = near[0] - slope, far[0] - steep * _FAR
    crossing = (flat - start) / (steep - slope) if steep > slope * (1 + 1e-9) else 0.0
    if crossing <= 2:  # two sequences are beyond the knee already
        crossing = (near[0] - start) / steep
    return Knee(crossing if crossing > 1 else None, _roofline(priced(1), priced(2), one))


def _roofline(report: CostReport, two: CostReport, one: Sequence[Operation]) -> float | None:
    """Sequences at which the products of the matrices take as long as the bytes that all sequences share."""
    if not report.peak_macs_per_s or not report.memory_bytes_per_s:
        return None
    shared = 2 * report.memory_bytes - two.memory_bytes
    arithmetic = sum(op.macs for op in one if op.kind == "linear") / report.peak_macs_per_s
    found = shared / report.memory_bytes_per_s / arithmetic if arithmetic else 0.0
    return found if found > 1 else None
