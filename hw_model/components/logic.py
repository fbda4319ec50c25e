"""Multiply-accumulate units and single operations, at 28 nm and 0.9 V.

Units: own gate-level results (hw_model/rtl, `make rtl`: yosys and a 180 nm library, every output equal to an integer
reference, activity of real tensors), in gate equivalents and moved to 28 nm by gate capacitance and voltage; wires and
glitches are left out, so ratios are worth more than absolute values. Operations: Horowitz, ISSCC 2014, 45 nm, moved by
Stillmaker and Baas.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files

from hw_model.components.gates import NAND_AREA, NAND_CAPACITANCE
from hw_model.components.scaling import energy_factor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VOLTS = 0.9
TO_28NM = energy_factor(45, 0.9, 28, 0.9)


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


def _measured() -> dict[str, DotUnit]:
    """The units by module name, from the stored results of `make rtl`."""
    text = (files("hw_model") / "rtl" / "results.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    # the same gate in both technologies: energy goes with its input capacitance and the square of the voltage
    factor = NAND_CAPACITANCE * 1e-3 / found.pop("gate_capacitance_pf") * (VOLTS / found.pop("volts")) ** 2
    return {
        name: DotUnit(unit["macs"], unit["gate_equivalents"], unit["energy_pj"] * 1e-12 * factor / max(unit["macs"], 1))
        for name, unit in found.items()
    }


UNITS: dict[str, DotUnit] = _measured()

# pJ at 45 nm, 0.9 V (Horowitz); the 4- and 16-bit multiplies follow the square of the width.
_OPERATIONS = {
    "int8 add": 0.03, "int16 add": 0.05, "int32 add": 0.1, "fp16 add": 0.4, "fp32 add": 0.9,
    "int4 mul": 0.05, "int8 mul": 0.2, "int16 mul": 0.8, "int32 mul": 3.1, "fp16 mul": 1.1, "fp32 mul": 3.7,
}  # fmt: skip


def operation_energy(name: str) -> float:
    """J of one operation such as "fp32 mul", 28 nm. Raises KeyError on an unknown one."""
    return _OPERATIONS[name] * 1e-12 * TO_28NM
