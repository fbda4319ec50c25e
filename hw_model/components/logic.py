"""Multiply-accumulate units and single operations, at 28 nm and 0.9 V.

Units: own gate-level results (targets/gates.py). Operations: Horowitz, ISSCC 2014, 45 nm, moved by Stillmaker and Baas.
"""

from __future__ import annotations

from hw_model.components.scaling import area_factor, energy_factor
from targets.gates import UNITS, VOLTS, DotUnit

__all__ = ["TO_28NM", "UNITS", "VOLTS", "DotUnit", "operation_area", "operation_energy"]
TO_28NM = energy_factor(45, VOLTS, 28, VOLTS)

# pJ at 45 nm, 0.9 V (Horowitz); the 4- and 16-bit multiplies follow the square of the width.
_OPERATIONS = {
    "int8 add": 0.03, "int16 add": 0.05, "int32 add": 0.1, "fp16 add": 0.4, "fp32 add": 0.9,
    "int4 mul": 0.05, "int8 mul": 0.2, "int16 mul": 0.8, "int32 mul": 3.1, "fp16 mul": 1.1, "fp32 mul": 3.7,
}  # fmt: skip
# um2 at 45 nm (Horowitz); the 16-bit multiply follows the square of the width.
_AREAS = {
    "int8 add": 36, "int16 add": 67, "int32 add": 137, "fp16 add": 1360, "fp32 add": 4184, "int8 mul": 282,
    "int16 mul": 1128, "int32 mul": 3495, "fp16 mul": 1640, "fp32 mul": 7700,
}  # fmt: skip


def operation_energy(name: str) -> float:
    """J of one operation such as "fp32 mul", 28 nm. Raises KeyError on an unknown one."""
    return _OPERATIONS[name] * 1e-12 * TO_28NM


def operation_area(name: str) -> float:
    """um2 of the unit of one operation such as "fp32 mul", 28 nm. Raises KeyError on an unknown one."""
    return _AREAS[name] * area_factor(45, 28)
