"""Own gate-level results as constants of targets: units of hw_model/rtl, moved to 28 nm and 0.9 V.

gates.toml is written by `make rtl` (yosys and a 180 nm library, every output equal to an integer reference, activity of
real tensors). A unit moves by its gates: area in two-input NANDs, energy by their input capacitance and the square of
the voltage; wires and glitches are left out, so ratios are worth more than absolute values. Its table `activity` has
what the same tensors do on the bit lines of an array: one convention for all arrays and units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from targets.toml_file import read_toml

NAND_AREA = 0.614  # um2, NAND2 and NOR2 of 28 nm (ZigZag-IMC, arXiv 2305.18335)
NAND_CAPACITANCE = 0.7  # fF, both inputs
VOLTS = 0.9
_MOST_TERMS = 16


@dataclass(frozen=True)
class DotUnit:
    """A unit that adds `width` products a cycle."""

    width: int
    gate_equivalents: float
    energy_per_mac: float  # J, 28 nm; a cycle of a unit that multiplies nothing

    @property
    def area(self) -> float:
        """um2 of the whole unit, 28 nm."""
        return self.gate_equivalents * NAND_AREA


def _measured() -> tuple[dict[str, DotUnit], dict[str, float]]:
    found = read_toml(Path(__file__).parent / "gates.toml")[1]
    factor = NAND_CAPACITANCE * 1e-3 / found.pop("gate_capacitance_pf") * (VOLTS / found.pop("volts")) ** 2
    activity = found.pop("activity")
    units = {
        name: DotUnit(unit["macs"], unit["gate_equivalents"], unit["energy_pj"] * 1e-12 * factor / max(unit["macs"], 1))
        for name, unit in found.items()
    }
    return units, activity


UNITS, ACTIVITY = _measured()


def figure(text: str) -> float:
    """What `NAME.energy` (J a product), `NAME.area` (um2 a product's lane), `activity.NAME`, a multiple of one, such as
    `1.12 * mac_4x4.energy`, or a sum of those stands for. Raises ValueError on anything else."""
    if 1 < len(parts := text.split("+")) <= _MOST_TERMS:
        return sum(figure(part) for part in parts)
    factor, times, name = text.rpartition("*")
    unit, _, field = name.strip().partition(".")
    if unit == "activity" and field in ACTIVITY:
        value = ACTIVITY[field]
    elif unit in UNITS and field in ("energy", "area"):
        found = UNITS[unit]
        value = found.energy_per_mac if field == "energy" else found.area / max(found.width, 1)
    else:
        raise ValueError(f"{text[:50]!r} names no result of gates.toml")
    return float(factor) * value if times else value
