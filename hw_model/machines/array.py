"""The array of a processing-in-memory target: cycles, energy and area of a matrix-vector product in one array.

Four kinds: `digital` (adder trees beside SRAM), `analog` (all rows on the bit lines, one conversion a bit plane),
`ones-splitting` (RAP, arXiv 2411.14733: at most P word lines high, so that few ADC bits are exact) and `sdr` (QRazor,
arXiv 2501.13331: a 16-wide dot unit for each output, which reads 4-bit codes with shift flags from the array beside it;
own gate-level results).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hw_model.components.converters import adc_area, adc_delay, adc_energy, dac_area
from hw_model.components.gates import NAND_CAPACITANCE, full_adder_energy, place_value_adders, register_energy
from hw_model.components.logic import UNITS
from hw_model.components.macro import Macro, areas, clock_period, energies
from targets import Target


@dataclass(frozen=True)
class Array:
    """What one array does for one input vector."""

    rows: int
    outputs: int
    cycles: float  # of one product
    clock: float  # Hz
    energy: dict[str, float]  # J of one product of a full array, by part
    areas: dict[str, float]  # mm2 by part
    bytes: float  # of weights it holds
    lossless: bool = True  # whether its converters lose nothing

    @property
    def seconds(self) -> float:
        return self.cycles / self.clock

    @property
    def area(self) -> float:
        """mm2 of the whole array."""
        return sum(self.areas.values())

    def tiles(self, rows: int, columns: int) -> int:
        """Arrays that a weight matrix [rows, columns] takes; partly filled ones count."""
        return math.ceil(columns / self.rows) * math.ceil(rows / self.outputs)

    def energy_of(self, macs: int) -> dict[str, float]:
        """J of so many products, by part."""
        return {name: joules * macs / (self.rows * self.outputs) for name, joules in self.energy.items()}


def build(target: Target) -> Array:
    """The array a target describes."""
    kind, rows, outputs = target.choices["array"], round(target["rows"]), round(target["outputs"])
    size = rows * outputs * target["weight_bits"] / 8
    cells = rows * outputs * target["weight_bits"] * target["cell_area"]
    if kind == "sdr":
        unit = UNITS["sdr_dot16"]
        energy = {"SDR dot units": rows * outputs * unit.energy_per_mac, "weight reads": size * target["read_energy"]}
        areas_mm2 = {"SDR dot units": outputs * unit.area * 1e-6, "cells": cells * 1e-6}
        return Array(rows, outputs, rows / unit.width, target["clock"], energy, areas_mm2, size)
    macro = Macro(
        analog=kind != "digital",
        rows=rows,
        outputs=outputs,
        input_bits=round(target["input_bits"]),
        weight_bits=round(target["weight_bits"]),
        bits_per_cycle=1 if kind == "ones-splitting" else round(target["bits_per_cycle"]),
        adc_bits=round(target["adc_bits"]),
        adc_law=target.choices["adc_law"],
        volts=target["voltage"],
        cell_area=cells,
        columns_per_adc=target["columns_per_adc"],
        input_ones=target["ones_density"],
        input_toggles=target["input_toggles"],
        weight_ones=target["weight_ones"],
        node=target["node"],
    )
    areas_mm2 = {name: um2 * 1e-6 for name, um2 in areas(macro).items() if um2}
    if macro.analog and target["adc_rate"]:
        areas_mm2["ADC"] = _rated(target, macro) * macro.weight_bits * outputs / macro.columns_per_adc * 1e-6
    if macro.analog and macro.bits_per_cycle > 1:  # ZigZag-IMC leaves them out
        areas_mm2["DAC"] = dac_area(macro.bits_per_cycle) * rows * 1e-6
    turns, period = _conversion(target, macro)
    clock = min(target["clock"], 1e9 / period)
    if kind == "ones-splitting":
        return _ones_splitting(target, macro, (turns, clock), areas_mm2, size)
    planes = math.ceil(macro.input_bits / macro.bits_per_cycle)
    energy = {name: value * 1e-15 * planes for name, value in energies(macro).items()}
    lossless = kind == "digital" or 2 ** target["adc_bits"] - 1 >= rows * (2 ** target["bits_per_cycle"] - 1)
    return Array(rows, outputs, planes * turns, clock, energy, areas_mm2, size, lossless)


def _rated(target: Target, macro: Macro) -> float:
    """um2 of a converter of the stated rate: by its published density, or as many of the macro equations' that take
    turns as it takes to be so fast."""
    if target["adc_area"]:
        return target["adc_area"] * target["adc_rate"]
    turns = target["adc_rate"] * adc_delay(macro.adc_bits, 0) * 1e-9
    return adc_area(macro.adc_bits) * macro.node / 28 * max(turns, 1.0)


def _conversion(target: Target, macro: Macro) -> tuple[float, float]:
    """Cycles that the converters take for one plane, and ns of a cycle.

    By the macro equations every column's turn lets its line settle. Behind a sample and hold all lines settle at once,
    while the values before them are converted at the converter's own rate: the longer of both is one cycle.
    """
    if not macro.analog or not target["adc_rate"]:
        return macro.columns_per_adc if macro.analog else 1.0, clock_period(macro)
    settling = adc_delay(macro.adc_bits, macro.rows) - adc_delay(macro.adc_bits, 0)
    rest = clock_period(macro) - adc_delay(macro.adc_bits, macro.rows)
    return 1.0, max(rest + settling, 1e9 * macro.columns_per_adc / target["adc_rate"])


def rows_active(target: Target) -> int:
    """Word lines of one conversion: as stated, or for 0 as many as the converter resolves."""
    return round(target["rows_active"]) or max(round(2 ** target["adc_bits"]) - 1, 1)


def conversions(rows: int, density: float, active: int) -> float:
    """Conversions of one input bit plane of `rows` bits, on average, with at most `active` ones in each.

    Ones are taken as independent: their number varies from plane to plane, and a part of a run takes a whole
    conversion. scribe-6M's planes take what this says within 1 % (tests/hw_model/test_books.py).
    """
    ones = np.arange(rows + 1)
    logs = np.array([math.lgamma(rows + 1) - math.lgamma(n + 1) - math.lgamma(rows - n + 1) for n in ones])
    inside = min(max(density, 1e-12), 1 - 1e-12)
    chance = np.exp(logs + ones * math.log(inside) + (rows - ones) * math.log1p(-inside))
    return float(chance @ np.maximum(np.ceil(ones / active), 1))


def _ones_splitting(
    target: Target, macro: Macro, turns_and_clock: tuple[float, float], areas_mm2: dict[str, float], size: float
) -> Array:
    """A conversion for every `rows_active` ones of an input bit plane; all cells hang on the line that settles."""
    active, (turns, clock) = rows_active(target), turns_and_clock
    count = macro.input_bits * conversions(macro.rows, macro.input_ones, active)
    columns, adder, square = macro.weight_bits * macro.outputs, full_adder_energy(macro.volts), macro.volts**2
    merge = place_value_adders(macro.weight_bits, macro.adc_bits) * adder
    accumulate = (macro.input_bits + macro.weight_bits + macro.adc_bits) * (adder + register_energy(macro.volts))
    driven = macro.input_bits * macro.rows * macro.input_ones  # word lines that go high, over all conversions
    energy = {
        "ADC": count * columns * adc_energy(macro.adc_bits, macro.volts, macro.adc_law),
        "multipliers": 0.5 * NAND_CAPACITANCE * square * columns * driven * macro.weight_ones,
        # charged again in full after each conversion, however few of its rows were driven
        "bit lines": 0.5 * NAND_CAPACITANCE * square * columns * macro.rows * count,
        "place-value adders": count * macro.outputs * merge,
        "accumulators": count * macro.outputs * accumulate,
    }
    shrink = {"ADC": 1.0}  # converters do not go with the node
    joules = {name: value * 1e-15 * shrink.get(name, macro.node / 28) for name, value in energy.items()}
    lossless = 2 ** target["adc_bits"] - 1 >= active
    return Array(macro.rows, macro.outputs, count * turns, clock, joules, areas_mm2, size, lossless)
