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


def _sums(m: Macro) -> tuple[float, int, int]:
    """(place-value adders per output, bits they give, bits of the accumulator; 0 when there is none)."""
    depth = round(math.log2(m.rows))
    parts, bits = (m.weight_bits, m.adc_bits) if m.analog else (m.bits_per_cycle, m.weight_bits + depth)
    given = bits + parts if parts > 1 else bits
    wide = m.input_bits + m.weight_bits + (m.adc_bits if m.analog else depth)
    return place_value_adders(parts, bits), given, wide if m.bits_per_cycle < m.input_bits else 0


def areas(m: Macro) -> dict[str, float]:
    """um2 by part, 28 nm."""
    columns = m.outputs * m.banks
    place, _, wide = _sums(m)
    multipliers = m.weight_bits * columns * m.rows * (1 if m.analog else m.bits_per_cycle)
    trees = 0 if m.analog else m.bits_per_cycle * columns * tree_adders(m.rows, m.weight_bits)
    return {
        "cells": m.cell_area,
        "multipliers": multipliers * NAND_AREA,
        "ADC": m.weight_bits * columns * adc_area(m.adc_bits) / m.columns_per_adc if m.analog else 0.0,
        "adder trees": trees * FULL_ADDER_AREA,
        "place-value adders": place * columns * FULL_ADDER_AREA,
        "accumulators": wide * columns * (FULL_ADDER_AREA + REGISTER_AREA),
    }


def clock_period(m: Macro) -> float:
    """ns of one cycle."""
    place_parts = m.weight_bits if m.analog else m.bits_per_cycle
    _, given, wide = _sums(m)
    front = adc_delay(m.adc_bits, m.rows) if m.analog else tree_delay(m.rows, m.weight_bits)
    accumulator = TO_CARRY + CARRY * (wide - given - 1) if wide else 0.0
    return NAND_DELAY + front + place_value_delay(place_parts) + accumulator


def energies(m: Macro) -> dict[str, float]:
    """fJ by part of one bit plane (or bits_per_cycle of them) on all columns: a cycle where each has its converter."""
    columns = m.outputs * m.banks
    place, _, wide = _sums(m)
    adder, volts = full_adder_energy(m.volts), m.volts
    multipliers = m.weight_bits * columns * m.rows * (1 if m.analog else m.bits_per_cycle)
    found = {
        "multipliers": multipliers * m.activity * multiplier_energy(volts),
        "place-value adders": place * columns * adder,
        "accumulators": wide * columns * (adder + register_energy(volts)),
    }
    if m.analog:
        found["DAC"] = dac_energy(m.bits_per_cycle, volts) * m.rows * m.banks
        found["ADC"] = adc_energy(m.adc_bits, volts, m.adc_law) * m.weight_bits * columns
        found["bit lines"] = 0.5 * NAND_CAPACITANCE * volts**2 * m.weight_bits * columns * m.rows
    else:
        trees = m.bits_per_cycle * columns * tree_adders(m.rows, m.weight_bits)
        found["adder trees"] = trees * m.activity * adder
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
