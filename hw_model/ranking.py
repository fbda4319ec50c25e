"""Which machine is better, and which assumption that hangs on.

Machines of one kind share most of their assumptions. Two of them are compared as they are, then with each shared
assumption at the other values that it may have: where their order changes, it turns on that assumption.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.parts import LEAKAGE
from hw_model.machines.ranges import alternatives
from hw_model.machines.result import CostReport
from targets import Target

_SAME = 1.005  # machines this near to each other have no order
_MOST = 3  # assumptions named for a pair
Figure = Callable[[CostReport], float]


def _dynamic(report: CostReport) -> float:
    return sum(part.energy_j for part in report.components if part.name != LEAKAGE)


_FIGURES: dict[str, Figure] = {
    "latency": lambda report: report.latency_s,
    "energy": lambda report: report.energy_j or 0.0,
    "energy without leakage": _dynamic,
}


def turning(
    work: Sequence[Operation], phase: Phase, targets: Sequence[Target], objective: str = "latency"
) -> list[str]:
    """A line for every pair of accelerators of one kind and figure whose order turns on a shared assumption."""
    priced: dict[tuple[str, str, float | str], CostReport] = {}

    def of(target: Target, name: str = "", value: float | str = "") -> CostReport:
        key = (f"{target.path} {target.name}", name, value)
        if key not in priced:
            other = target.varied({name: value}) if name else target
            priced[key] = price(work, phase, other, objective=objective, ranged=False)
        return priced[key]

    lines = []
    for one, other in itertools.combinations([t for t in targets if t.kind in ("pim", "stream")], 2):
        if one.kind == other.kind:
            lines += [line for name in _FIGURES if (line := _turn(one, other, name, of))]
    return lines


def _turn(one: Target, other: Target, figure: str, of: Callable[..., CostReport]) -> str:
    read = _FIGURES[figure]
    better, worse = sorted((one, other), key=lambda target: read(of(target)))
    ratio = read(of(worse)) / read(of(better)) if read(of(better)) else 1.0
    if ratio < _SAME:
        return ""
    found = []
    for name, values in alternatives(better).items():
        if name in worse.constants and better[name] != worse[name]:
            continue
        if name in better.choices and better.choices[name] != worse.choices.get(name):
            continue
        turned = [(read(of(worse, name, v)) / read(of(better, name, v)), name, v) for v in values]
        found += [turn for turn in turned if turn[0] * _SAME < 1]
    if not found:
        return ""
    turns = ", ".join(
        f"{1 / turned:.2f}x more with {name} = {value if isinstance(value, str) else f'{value:g}'}"
        for turned, name, value in sorted(found, key=lambda turn: turn[0])[:_MOST]
    )
    return f"{better.name} takes {ratio:.2f}x less {figure} than {worse.name}, but {turns}"
