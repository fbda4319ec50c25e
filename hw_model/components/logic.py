"""Multiply-accumulate units and single operations, at 28 nm and 0.9 V.

Units: own gate-level results (yosys and a 180 nm library, full-adder flow, every output equal to an integer reference),
in gate equivalents and moved to 28 nm by gate capacitance; wires and glitches are left out, so ratios are worth more
than absolute values. Operations: Horowitz, ISSCC 2014, 45 nm, moved by Stillmaker and Baas.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw_model.components.gates import NAND_AREA
from hw_model.components.scaling import energy_factor

TO_28NM = energy_factor(45, 0.9, 28, 0.9)


@dataclass(frozen=True)
class DotUnit:
    """A unit that adds `width` products a cycle."""

    width: int
    gate_equivalents: float
    energy_per_mac: float  # J, 28 nm

    @property
    def area(self) -> float:
        """um2 of the whole unit, 28 nm."""
        return self.gate_equivalents * NAND_AREA


UNITS: dict[str, DotUnit] = {
    "int4": DotUnit(1, 388, 49e-15),
    "int8": DotUnit(1, 776, 114e-15),
    "int8x16": DotUnit(1, 1421, 184e-15),
    "int8-dot16": DotUnit(16, 7627, 73e-15),
    "int8x16-dot16": DotUnit(16, 17091, 140e-15),
    "decompress-dot16": DotUnit(16, 19766, 106e-15),
    "sdr-dot16": DotUnit(16, 2284, 18e-15),
    "int4-fp16scale-dot16": DotUnit(16, 5326, 45e-15),
}

# pJ at 45 nm, 0.9 V (Horowitz); the 4- and 16-bit multiplies follow the square of the width.
_OPERATIONS = {
    "int8 add": 0.03, "int16 add": 0.05, "int32 add": 0.1, "fp16 add": 0.4, "fp32 add": 0.9,
    "int4 mul": 0.05, "int8 mul": 0.2, "int16 mul": 0.8, "int32 mul": 3.1, "fp16 mul": 1.1, "fp32 mul": 3.7,
}  # fmt: skip


def operation_energy(name: str) -> float:
    """J of one operation such as "fp32 mul", 28 nm. Raises KeyError on an unknown one."""
    return _OPERATIONS[name] * 1e-12 * TO_28NM
