"""What a machine is made of: for each part its area, and its power while it does nothing.

Every resource with a rate has both, so none is free to be made larger. Logic leaks by its area, memory by its bytes; an
interface to DRAM keeps the memory behind it in standby.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hw_model.machines.result import ComponentCost
from targets import Target

LEAKAGE = "leakage"  # the component that has the energy of all parts that stand still


@dataclass(frozen=True)
class Part:
    """One kind of part of a chip, all of them together."""

    area: float  # mm2
    leakage: float  # W


def logic(target: Target, area: float) -> Part:
    """Gates and wires of `area` mm2."""
    return Part(area, area * target["logic_leakage"])


def lanes(target: Target, count: float, area: str) -> Part:
    """`count` lanes of the um2 that a constant of the target states."""
    return logic(target, count * target[area] * 1e-6)


def dram(target: Target) -> Part:
    """The interface of the target's bandwidth, with the memory's standby."""
    bandwidth = target["dram_bandwidth"]
    found = logic(target, bandwidth * target["dram_area"])
    return Part(found.area, found.leakage + bandwidth * target["dram_idle"])


def leakage(parts: Mapping[str, Part]) -> float:
    """W of all parts while they stand still."""
    return sum(part.leakage for part in parts.values())


def components(energies: Mapping[str, float], parts: Mapping[str, Part], seconds: float) -> tuple[ComponentCost, ...]:
    """Energy, area and standing power by component, the largest energy first.

    energies: J of what each did; what all of them leaked in that time is a component of its own.
    """
    none = Part(0.0, 0.0)
    found = [
        ComponentCost(name, energies.get(name, 0.0), parts.get(name, none).area, parts.get(name, none).leakage)
        for name in dict.fromkeys((*energies, *parts))
    ]
    found.append(ComponentCost(LEAKAGE, leakage(parts) * seconds, 0.0))
    return tuple(sorted(found, key=lambda component: -component.energy_j))
