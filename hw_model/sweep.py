"""Many variants of one target: every combination of values for some of its constants, priced on one workload."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.contract.errors import InputError
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.result import CostReport
from targets import Target, TargetError

Values = tuple[float | str, ...]
_MOST = 100_000  # combinations


@dataclass(frozen=True)
class Point:
    """One variant and its cost. `best`: no other variant is better in latency, energy and area at once."""

    values: Mapping[str, float | str]
    report: CostReport
    best: bool

    def to_json(self) -> dict[str, Any]:
        r = self.report
        return {
            **self.values, "latency_s": r.latency_s, "energy_j": r.energy_j, "area_mm2": r.area_mm2,
            "energy_delay_js": r.energy_delay, "tokens_per_s": r.tokens_per_s, "best": self.best,
            "lossless": r.mapping.get("lossless", True),
        }  # fmt: skip


def parse_variation(text: str) -> tuple[str, Values]:
    """`name=a,b,c` or `name=low:high` or `name=low:high:step` (whole numbers by default); names are the target's.

    Names may carry a part's name in front, as in adc.enob: `adc.enob` is adc_bits, `array.rows` is rows.
    Raises InputError on anything else.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise InputError(f"--vary {text!r}: expected NAME=VALUES, such as adc_bits=3:8 or rows=64,128,256")
    return _ALIASES.get(name.strip(), name.strip()), _values(values.strip(), text)


_ALIASES = {
    "adc.enob": "adc_bits",
    "adc.bits": "adc_bits",
    "adc.law": "adc_law",
    "array.rows": "rows",
    "array.outputs": "outputs",
    "array.count": "arrays",
    "array.kind": "array",
    "dram.bandwidth": "dram_bandwidth",
    "cache.bits": "cache_bits",
}


def _values(values: str, text: str) -> Values:
    try:
        if ":" in values:
            low, high, *rest = (float(part) for part in values.split(":"))
            step = rest[0] if rest else 1.0
            if len(rest) > 1 or step <= 0 or high < low or (high - low) / step > _MOST:
                raise ValueError
            return tuple(low + i * step for i in range(math.floor((high - low) / step + 1e-9) + 1))
    except ValueError:
        raise InputError(f"--vary {text!r}: a range is LOW:HIGH or LOW:HIGH:STEP") from None
    return tuple(_number(part.strip()) for part in values.split(","))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def sweep(
    work: Sequence[Operation], phase: Phase, target: Target, variations: Sequence[tuple[str, Values]],
    objective: str = "latency", progress: Callable[[str], None] = lambda label: None,
) -> list[Point]:  # fmt: skip
    """Price every combination. `progress` is called after each.

    Raises InputError for names and values the target does not have, and for more than 100,000 combinations.
    """
    names = [name for name, _ in variations]
    count = math.prod(len(values) for _, values in variations)
    if count > _MOST:
        raise InputError(f"{count} combinations; at most {_MOST} are priced")
    found: list[tuple[dict[str, float | str], CostReport]] = []
    for chosen in itertools.product(*(values for _, values in variations)):
        values = dict(zip(names, chosen))
        try:
            found.append((values, price(work, phase, target.varied(values), "rtl", objective, ranged=False)))
        except TargetError as error:
            raise InputError(str(error)) from None
        progress(" ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()))
    front = _pareto([(r.latency_s, r.energy_j or 0.0, r.area_mm2 or 0.0) for _, r in found])
    return [Point(values, report, i in front) for i, (values, report) in enumerate(found)]


def _pareto(costs: Sequence[tuple[float, float, float]]) -> set[int]:
    """Indices of the points that no other point dominates."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=costs.__getitem__):
        if not any(all(a <= b for a, b in zip(costs[j], costs[i])) for j in best):
            best.append(i)
    return set(best)
