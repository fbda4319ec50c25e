"""Low and high of a report's figures over the ranges that the target states, and the assumption that moves each most.

Every constant with a range is tried at both ends, every law that others would choose in its place; a figure's low has
each of them on the side that lowers it, its high on the other. The mapping stays the one that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from targets import CHOICES, Target

Figures = tuple[float, float, float]  # latency in s, energy in J, area in mm2
NAMES = ("latency", "energy", "area")
_WITH_CONVERTERS = ("analog", "ones-splitting")  # arrays that an ADC law matters to


@dataclass(frozen=True)
class Range:
    """What one figure may be. turns_on: the assumption that moves it most, "" where none does."""

    low: float
    high: float
    turns_on: str = ""


def alternatives(target: Target) -> dict[str, tuple[float | str, ...]]:
    """By name, the other values that an assumption may have: ends of a range, other converter laws."""
    found: dict[str, tuple[float | str, ...]] = {}
    for name, constant in target.constants.items():
        ends = tuple(end for end in (constant.low, constant.high) if end is not None and end != constant.value)
        if ends:
            found[name] = ends
    if target.choices.get("array") in _WITH_CONVERTERS:
        laws = CHOICES[target.kind]["adc_law"]
        found["adc_law"] = tuple(law for law in laws if law != target.choices["adc_law"])
    return found


def ranges(figures: Callable[[Target], Figures], target: Target) -> tuple[Range, Range, Range]:
    """Ranges of latency, energy and area; `figures` prices a target as it stands."""
    base = figures(target)
    tried = {
        name: [(value, figures(target.varied({name: value}))) for value in values]
        for name, values in alternatives(target).items()
    }
    return tuple(_range(i, base, tried, figures, target) for i in range(len(NAMES)))  # type: ignore[return-value]


def _range(
    which: int,
    base: Figures,
    tried: dict[str, list[tuple[float | str, Figures]]],
    figures: Callable[[Target], Figures],
    target: Target,
) -> Range:
    low, high, spread = dict[str, float | str](), dict[str, float | str](), dict[str, float]()
    for name, outcomes in tried.items():
        least, most = (choose(outcomes, key=lambda outcome: outcome[1][which]) for choose in (min, max))
        if least[1][which] < base[which]:
            low[name] = least[0]
        if most[1][which] > base[which]:
            high[name] = most[0]
        spread[name] = max(most[1][which], base[which]) - min(least[1][which], base[which])
    ends = [figures(target.varied(chosen))[which] for chosen in (low, high)]
    widest = max(spread, key=spread.__getitem__, default="")
    moved = widest if widest and spread[widest] > 1e-9 * base[which] else ""
    return Range(min(ends[0], base[which]), max(ends[1], base[which]), moved)


def as_they_are(figures: Sequence[float]) -> tuple[Range, Range, Range]:
    """Ranges of no width, where none were asked for."""
    return tuple(Range(value, value) for value in figures)  # type: ignore[return-value]


def spanned(found: Sequence[Range], has_area: bool = True) -> dict[str, Any]:
    """The fields of a report that hold the ranges."""
    latency, energy, area = found
    return {
        "latency_low_s": latency.low,
        "latency_high_s": latency.high,
        "energy_low_j": energy.low,
        "energy_high_j": energy.high,
        "area_low_mm2": area.low if has_area else None,
        "area_high_mm2": area.high if has_area else None,
        "turns_on": {name: one.turns_on for name, one in zip(NAMES, found) if one.turns_on},
    }
