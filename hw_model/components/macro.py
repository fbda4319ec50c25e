"""An in-memory-computing macro, digital (adder trees) or analog (bit lines and converters): area, clock, energy.

Equations: ZigZag-IMC (arXiv 2305.18335). Stated limits: 6T SRAM, ripple adders, integers; everything toggles unless
shares of ones and changes are given, which multipliers and adder trees go with; input and output registers and the
memory cells themselves are left out unless cell_area says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hw_model.components.converters import adc_area, adc_delay, adc_energy, dac_energy
from hw_model.components.gates import (
    CARRY,
    FULL_ADDER_AREA,
    NAND_AREA,
    NAND_CAPACITANCE,
    NAND_DELAY,
    REGISTER_AREA,
    TO_CARRY,
    full_adder_energy,
    multiplier_energy,
    place_value_adders,
    place_value_delay,
    register_energy,
    tree_adders,
    tree_delay,
)


@dataclass(frozen=True)
class Macro:
    """One macro: `rows` inputs meet `outputs` words in each of `banks` banks."""

    analog: bool
    rows: int  # summed on a bit line or by a tree; a power of two
    outputs: int
    banks: int = 1
    input_bits: int = 8
    weight_bits: int = 8
    bits_per_cycle: int = 1  # of the inputs
    adc_bits: int = 0  # analog only
    adc_law: str = "survey"
    volts: float = 0.9
    cell_area: float = 0.0  # um2 of all memory cells together
    columns_per_adc: float = 1.0  # bit lines that take turns at one converter
    input_ones: float = 1.0  # share of ones among input bits
    input_toggles: float = 1.0  # share of cycles in which an input bit changes
    weight_ones: float = 1.0  # share of ones among weight bits
    by_column: bool = False  # digital: a tree for each bit of the weights, then one that adds them at their places
    booth: bool = False  # digital: two input bits as one digit of Booth's, so one tree of words a bit wider
    pipelined: bool = False  # registers behind the front (converters, or the rows' trees): the longer part is the cycle
    accumulator_bits: int = 0  # 0: as many as the sums need
    cells_per_bit: int = 1  # on the bit line for each bit of a weight; 2: one for each sign
    node: float = 28.0  # nm; areas, and energies but the converters', go with it in proportion

    def __post_init__(self) -> None:
        """Raises ValueError where digital structures do not fit each other."""
        if (self.by_column or self.booth) and (self.analog or (self.by_column and self.booth)):
            raise ValueError("by_column and booth are of digital macros, one of them at a time")
        if self.booth and self.bits_per_cycle != 2:
            raise ValueError("a digit of Booth's is two bits a cycle")

    @property
    def activity(self) -> float:
        """Share of its one-bit products that change in a cycle. Bit lines are charged again in full all the same."""
        return self.weight_ones * (self.input_ones if self.analog else self.input_toggles)

    @property
    def cycles(self) -> float:
        """Cycles of one product of a vector."""
        return self.input_bits / self.bits_per_cycle * (self.columns_per_adc if self.analog else 1)

    @property
    def macs_per_cycle(self) -> float:
        return self.rows * self.outputs * self.banks / self.cycles


@dataclass(frozen=True)
class _Datapath:
    """The digital part of one output."""

    multipliers: int  # of one bit
    trees: int  # full adders that go with the activity
    tree_delay: float  # ns
    place: float  # full adders that add sums at their places
    place_delay: float  # ns
    accumulator: int  # bits, 0 where there is none
    accumulator_delay: float  # ns


def _datapath(m: Macro) -> _Datapath:
    """Adders of one output; analog macros add converters' results."""
    depth = round(math.log2(m.rows))
    if m.analog:
        trees, front = 0, 0.0
        parts, bits = m.weight_bits, m.adc_bits
    elif m.by_column:
        trees, front = m.weight_bits * tree_adders(m.rows, m.bits_per_cycle), tree_delay(m.rows, m.bits_per_cycle)
        parts, bits = 1, m.bits_per_cycle + depth + m.weight_bits - 1
    else:
        words, each = (1, m.weight_bits + 1) if m.booth else (m.bits_per_cycle, m.weight_bits)
        trees, front = words * tree_adders(m.rows, each), tree_delay(m.rows, each)
        parts, bits = words, each + depth
    place, place_delay = place_value_adders(parts, bits), place_value_delay(parts)
    given = bits + parts if parts > 1 else bits
    if m.by_column and m.weight_bits > 1:
        columns = 2 ** math.ceil(math.log2(m.weight_bits))
        place, place_delay = tree_adders(columns, bits), tree_delay(columns, bits)
        given = bits + round(math.log2(columns))
    wide = m.input_bits + m.weight_bits + (m.adc_bits if m.analog else depth)
    wide = (m.accumulator_bits or wide) if m.bits_per_cycle < m.input_bits else 0
    behind = TO_CARRY + CARRY * max(wide - given - 1, 0) if wide else 0.0
    serial = m.weight_bits * m.rows * m.cells_per_bit
    multipliers = serial if m.analog or m.booth else serial * m.bits_per_cycle
    return _Datapath(multipliers, trees, front, place, place_delay, wide, behind)


def areas(m: Macro) -> dict[str, float]:
    """um2 by part; those of the memory cells as they are given."""
    columns, path, shrink = m.outputs * m.banks, _datapath(m), m.node / 28
    return {
        "cells": m.cell_area,
        "multipliers": path.multipliers * columns * NAND_AREA * shrink,
        "ADC": m.weight_bits * columns * adc_area(m.adc_bits) / m.columns_per_adc * shrink if m.analog else 0.0,
        "adder trees": path.trees * columns * FULL_ADDER_AREA * shrink,
        "place-value adders": path.place * columns * FULL_ADDER_AREA * shrink,
        "accumulators": path.accumulator * columns * (FULL_ADDER_AREA + REGISTER_AREA) * shrink,
    }


def clock_period(m: Macro) -> float:
    """ns of one cycle, at 0.9 V and 28 nm."""
    path = _datapath(m)
    front = NAND_DELAY + (adc_delay(m.adc_bits, m.rows) if m.analog else path.tree_delay)
    behind = path.place_delay + path.accumulator_delay
    return max(front, behind) if m.pipelined else front + behind


def energies(m: Macro) -> dict[str, float]:
    """fJ by part of one bit plane (or bits_per_cycle of them) on all columns: a cycle where each has its converter."""
    columns, path, shrink = m.outputs * m.banks, _datapath(m), m.node / 28
    adder, volts = full_adder_energy(m.volts), m.volts
    found = {
        "multipliers": path.multipliers * columns * m.activity * multiplier_energy(volts) * shrink,
        "place-value adders": path.place * columns * adder * shrink,
        "accumulators": path.accumulator * columns * (adder + register_energy(volts)) * shrink,
    }
    if m.analog:
        found["DAC"] = dac_energy(m.bits_per_cycle, volts) * m.rows * m.banks
        found["ADC"] = adc_energy(m.adc_bits, volts, m.adc_law) * m.weight_bits * columns
        found["bit lines"] = 0.5 * NAND_CAPACITANCE * volts**2 * path.multipliers * columns * shrink
    else:
        found["adder trees"] = path.trees * columns * m.activity * adder * shrink
    return found


def energy_per_mac(m: Macro) -> float:
    """fJ of one multiply-accumulate."""
    planes = m.input_bits / m.bits_per_cycle
    return sum(energies(m).values()) * planes / (m.rows * m.outputs * m.banks)


def tops(m: Macro) -> float:
    """Peak operations per second, 1e12; a multiply-accumulate counts as two."""
    return 2 * m.macs_per_cycle / clock_period(m) * 1e-3


def tops_per_watt(m: Macro) -> float:
    return 2000 / energy_per_mac(m)
