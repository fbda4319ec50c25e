"""The array of a processing-in-memory target: cycles, energy and area of a matrix-vector product in one array.

Four kinds: `digital` (adder trees beside SRAM), `analog` (all rows on the bit lines, one conversion a bit plane),
`ones-splitting` (RAP, arXiv 2411.14733: at most P word lines high, so that few ADC bits are exact) and `sdr` (QRazor,
arXiv 2501.13331: a 16-wide dot unit a word line group on 4-bit codes with shift flags, own gate-level results).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hw_model.components.converters import adc_delay, adc_energy
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
    area: float  # mm2
    bytes: float  # of weights it holds
    lossless: bool = True  # whether its converters lose nothing

    @property
    def seconds(self) -> float:
        return self.cycles / self.clock

    def tiles(self, rows: int, columns: int) -> int:
        """Arrays that a weight matrix [rows, columns] takes; partly filled ones count."""
        return math.ceil(columns / self.rows) * math.ceil(rows / self.outputs)


def build(target: Target) -> Array:
    """The array a target describes."""
    kind, rows, outputs = target.choices["array"], round(target["rows"]), round(target["outputs"])
    size = rows * outputs * target["weight_bits"] / 8
    cells = rows * outputs * target["weight_bits"] * target["cell_area"]
    if kind == "sdr":
        unit = UNITS["sdr_dot16"]
        energy = {"SDR dot units": rows * outputs * unit.energy_per_mac}
        area = (outputs * unit.area + cells) * 1e-6
        return Array(rows, outputs, rows / unit.width, target["clock"], energy, area, size)
    macro = Macro(
        analog=kind != "digital",
        rows=rows,
        outputs=outputs,
        input_bits=round(target["input_bits"]),
        weight_bits=round(target["weight_bits"]),
        bits_per_cycle=round(target["bits_per_cycle"]),
        adc_bits=round(target["adc_bits"]),
        adc_law=target.choices["adc_law"],
        volts=target["voltage"],
        cell_area=cells,
    )
    area = sum(areas(macro).values()) * 1e-6
    if kind == "ones-splitting":
        return _ones_splitting(target, macro, area, size)
    clock = min(target["clock"], 1e9 / clock_period(macro))
    energy = {name: value * 1e-15 * macro.cycles for name, value in energies(macro).items()}
    lossless = kind == "digital" or 2 ** target["adc_bits"] - 1 >= rows * (2 ** target["bits_per_cycle"] - 1)
    return Array(rows, outputs, macro.cycles, clock, energy, area, size, lossless)


def rows_active(target: Target) -> int:
    """Word lines of one conversion: as stated, or for 0 as many as the converter resolves."""
    return round(target["rows_active"]) or max(round(2 ** target["adc_bits"]) - 1, 1)


def _ones_splitting(target: Target, macro: Macro, area: float, size: float) -> Array:
    """One conversion for every `rows_active` ones of an input bit plane, at the delay of that few rows."""
    active = rows_active(target)
    conversions = macro.input_bits * max(math.ceil(macro.rows * target["ones_density"] / active), 1)
    period = clock_period(replace(macro, bits_per_cycle=1)) - adc_delay(macro.adc_bits, macro.rows)
    period += adc_delay(macro.adc_bits, active)
    columns, adder = macro.weight_bits * macro.outputs, full_adder_energy(macro.volts)
    bit_lines = NAND_CAPACITANCE * macro.volts**2 * columns * active
    merge = place_value_adders(macro.weight_bits, macro.adc_bits) * adder
    accumulate = (macro.input_bits + macro.weight_bits + macro.adc_bits) * (adder + register_energy(macro.volts))
    energy = {
        "ADC": conversions * columns * adc_energy(macro.adc_bits, macro.volts, macro.adc_law) * 1e-15,
        "bit lines": conversions * bit_lines * 1e-15,
        "place-value adders": conversions * macro.outputs * merge * 1e-15,
        "accumulators": conversions * macro.outputs * accumulate * 1e-15,
    }
    clock = min(target["clock"], 1e9 / period)
    lossless = 2 ** target["adc_bits"] - 1 >= active
    return Array(macro.rows, macro.outputs, conversions, clock, energy, area, size, lossless)
