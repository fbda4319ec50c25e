"""How much of its main resource a machine has: as much as an area holds, or as little as the work deserves.

The main resource is what a kind of machine is counted in: arrays, macros or multipliers. All else of a target stays as
it is and keeps its area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from export.contract.errors import InputError
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.result import CostReport
from targets import Target, TargetError

RESOURCES: Mapping[str, str] = {"pim": "arrays", "attentionlego": "macros", "stream": "macs"}
_MANY = 2**24  # of the resource: enough for every model, so that nothing is refused where only area is asked
_TOLERANCE = 1.01  # at the knee a figure is at most so much of its best

_FIGURES: Mapping[str, Callable[[CostReport], float]] = {
    "latency": lambda report: report.latency_s,
    "energy": lambda report: report.energy_j or 0.0,
    "edp": lambda report: report.energy_delay or 0.0,
}


def resource_of(target: Target) -> str:
    """The constant that the target is sized by. Raises InputError for a device whose silicon is what it is."""
    if target.kind not in RESOURCES:
        raise InputError(
            f"{target.name}: a device of kind {target.kind} has one size; --area and --size are for others"
        )
    return RESOURCES[target.kind]


def made(
    work: Sequence[Operation], phase: Phase, target: Target, area: float | None = None, knee: bool = False,
    profile: str = "rtl", objective: str = "latency",
) -> Target:  # fmt: skip
    """The target at an area, or as it is; at the knee: as little of that as the work deserves. Raises InputError."""
    target = target if area is None else of_area(work, phase, target, area)
    return at_the_knee(work, phase, target, profile, objective) if knee else target


def of_area(work: Sequence[Operation], phase: Phase, target: Target, area: float) -> Target:
    """The target with as much of its resource as `area` mm2 hold beside its other parts.

    Raises InputError where not even one fits.
    """
    name = resource_of(target)
    sizes = [_priced(work, phase, target, name, count).area_mm2 or 0.0 for count in (_MANY, 2 * _MANY)]
    each = (sizes[1] - sizes[0]) / _MANY
    others = sizes[0] - _MANY * each
    count = math.floor((area - others) / each * (1 + 1e-12)) if each > 0 else 0
    if count < 1:
        raise InputError(
            f"{target.name}: {area:g} mm2 hold none of its {name}: one takes {each:.3g} mm2, all other parts "
            f"{max(others, 0):.4g}"
        )
    return _sized(target, name, count)


def at_the_knee(
    work: Sequence[Operation], phase: Phase, target: Target, profile: str = "rtl", objective: str = "latency"
) -> Target:
    """The target with the least of its resource that comes within 1 % of the best that it reaches with all of it.

    All of it is what the target has, or where it states no number, as many as the model needs.
    """
    name = resource_of(target)
    figure, seen = _FIGURES[objective], dict[int, float]()

    def of(count: int) -> float:
        if count not in seen:
            try:
                seen[count] = figure(_priced(work, phase, target, name, count, profile, objective))
            except InputError:  # too few to hold what must lie there
                seen[count] = math.inf
        return seen[count]

    most = round(target[name]) or _needed(work, phase, target, profile, objective)
    counts = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    best = min(of(count) for count in counts)
    if not math.isfinite(best):
        price(work, phase, target, profile, objective, ranged=False)  # raises what is wrong
    enough = next(count for count in counts if of(count) <= _TOLERANCE * best)
    low = enough // 2  # misses, or is none
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if of(middle) <= _TOLERANCE * best else (middle, enough)
    return _sized(target, name, enough)


def _sized(target: Target, name: str, count: int) -> Target:
    """The target with so many, and a name that says so. Raises InputError for more than any machine has."""
    try:
        return target.with_changes({name: f"{count}"})
    except TargetError as error:
        raise InputError(str(error)) from None


def _needed(work: Sequence[Operation], phase: Phase, target: Target, profile: str, objective: str) -> int:
    mapping = price(work, phase, target, profile, objective, ranged=False).mapping
    return int(mapping.get("arrays") or mapping.get("macros") or 1)


def _priced(
    work: Sequence[Operation], phase: Phase, target: Target, name: str, count: int, profile: str = "rtl",
    objective: str = "latency",
) -> CostReport:  # fmt: skip
    return price(work, phase, target.varied({name: float(count)}), profile, objective, ranged=False)
