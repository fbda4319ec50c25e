"""Full adders, adder trees and registers in gates of one technology: 28 nm, 0.9 V, three fitted constants.

Equations and constants: ZigZag-IMC (arXiv 2305.18335), re-stated in the project's hardware notes; delays hold at 0.9 V.
Area in um2, delay in ns, energy in fJ.
"""

from __future__ import annotations

import math

from targets.gates import NAND_AREA, NAND_CAPACITANCE

NAND_DELAY = 0.0478  # ns

FULL_ADDER_AREA = 7.8 * NAND_AREA
REGISTER_AREA = 6 * NAND_AREA
TO_SUM, TO_CARRY, CARRY = 4.8 * NAND_DELAY, 4.4 * NAND_DELAY, 2 * NAND_DELAY


def full_adder_energy(volts: float) -> float:
    """fJ of one full adder whose three inputs change."""
    return 6 * NAND_CAPACITANCE * volts**2


def register_energy(volts: float) -> float:
    """fJ of one register bit."""
    return 3 * NAND_CAPACITANCE * volts**2


def multiplier_energy(volts: float) -> float:
    """fJ of a one-bit multiplier (NOR2) whose weight side does not change."""
    return 0.5 * NAND_CAPACITANCE * volts**2


def tree_adders(inputs: int, bits: int) -> int:
    """Full adders of a tree that adds `inputs` (a power of two) numbers of `bits` bits."""
    depth = round(math.log2(inputs))
    return inputs * (bits + 1) - (bits + depth + 1)


def tree_delay(inputs: int, bits: int) -> float:
    """ns of that tree, ripple adders throughout."""
    depth = round(math.log2(inputs))
    return (depth - 1) * TO_SUM + TO_CARRY + CARRY * (bits + depth - 2) if depth else 0.0


def place_value_adders(parts: int, bits: int) -> float:
    """Full adders that add `parts` partial sums of `bits` bits, each shifted by one place; 0 for a single part."""
    return bits * (parts - 1) + parts * (math.log2(parts) - 0.5) if parts > 1 else 0.0


def place_value_delay(parts: int) -> float:
    """ns of those adders."""
    return (math.log2(parts) - 1) * TO_SUM + TO_CARRY + CARRY * (parts - 1) if parts > 1 else 0.0
