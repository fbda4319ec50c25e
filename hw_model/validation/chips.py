"""Published macros from their parameters alone, through the equations that targets use (components/macro.py).

Parameters and figures: the project's hardware notes, which name the papers. The seven of ZigZag-IMC (arXiv 2305.18335)
are fitted rows: the equations' constants come from its authors, who had these chips in view. Chih's and Wang's are
held out. Activity: as published, else the shares of ones and changes that targets assume.
"""

from __future__ import annotations

from typing import Any

from hw_model.components.converters import adc_energy, dac_energy
from hw_model.components.macro import Macro, areas, clock_period, energy_per_mac
from hw_model.validation.row import FITTED, HELD_OUT, Row
from targets import load_target

_AREA, _TIME, _ENERGY = 0.40, 0.25, 0.25
_HALF: dict[str, Any] = {"input_toggles": 0.5, "weight_ones": 0.5}  # as ISSCC 2022 15.5 and 2023 7.2 state
_UNKNOWN = "activity not published"


def seven() -> list[Row]:
    """Four digital and three analog macros of 22 and 28 nm: area, cycle, energy of a product."""
    booth = Macro(
        False, 32, 6, 64, bits_per_cycle=2, booth=True, accumulator_bits=32, cell_area=64 * 655.45, **_HALF
    )  # fmt: skip
    serial = Macro(False, 32, 1, 2, cell_area=7920)
    columns = Macro(False, 128, 1, 8, bits_per_cycle=2, by_column=True, cell_area=8 * 1931.47, **_HALF)
    staged = Macro(False, 128, 8, 4, by_column=True, pipelined=True, cell_area=4 * 4167.28)
    ternary = Macro(
        True, 1024, 512, input_bits=7, weight_bits=1, bits_per_cycle=7, adc_bits=6, cells_per_bit=2, volts=0.8, node=22,
        cell_area=489_940,
    )  # fmt: skip
    pairs = Macro(True, 16, 12, 4, bits_per_cycle=2, adc_bits=5, cell_area=4 * 36_045)
    eighth = Macro(
        True, 8, 256, 8, weight_bits=1, adc_bits=3, volts=0.8, node=22, input_ones=0.375, weight_ones=0.5,
        cell_area=36_044 * 22 / 28,
    )  # fmt: skip
    return [
        *_chip("ISSCC 2022 15.5, digital, 28 nm", booth, (0.9408, 5.128, 54.60)),
        *_chip("ISSCC 2022 11.7, digital, 28 nm", serial, (0.0300, 3.0, 2000 / 22), energy=_UNKNOWN,
               area="adds up every product on its own before the tree, with 24 registers each"),
        *_chip("ISSCC 2023 7.2, digital, 28 nm", columns, (0.1462, 5.495, 102.56)),
        *_chip("ISSCC 2023 16.3, digital, 28 nm", staged, (0.269, 2.5, 2000 / 275), energy=_UNKNOWN),
        *_chip("CICC 2021, analog, 22 nm", ternary, (1.9425, 44.44, 1.905)),
        *_chip("JSSC 2023, analog, 28 nm", pairs, (0.468, 7.2, 133.2), energy=_UNKNOWN),
        *_chip("ISSCC 2023 7.8, analog, 22 nm", eighth, (1.88, 2.747, 106.95),
               area="its 3-bit converters are as large as 7-bit ones, and 64 rows of multipliers wait for 8 to be read",
               energy="half of its converters stand still, which the equations do not know"),
    ]  # fmt: skip


def _chip(
    name: str, macro: Macro, published: tuple[float, float, float], energy: str = "", area: str = ""
) -> list[Row]:  # fmt: skip
    """Three rows; energy, area: why they miss, or why the energy is not compared."""
    joules = None if energy == _UNKNOWN else energy_per_mac(macro)
    return [
        Row(name, "area", "mm2", published[0], sum(areas(macro).values()) * 1e-6, FITTED, _AREA, area),
        Row(name, "clock period", "ns", published[1], clock_period(macro), FITTED, _TIME),
        Row(name, "energy", "fJ/MAC", published[2], joules, FITTED, _ENERGY, energy),
    ]


def unseen() -> list[Row]:
    """A digital macro of 22 nm, and the converters of an analog one.

    Wang: 32 TOPS/W at 0.7 V are 62.5 fJ/MAC, of which 34 % are the ADC's (one conversion sums 64 products) and 22 % the
    DAC's (one value meets 16 outputs).
    """
    usual = load_target("digital-sram-pim")
    rows, chip = [], "Chih ISSCC 2021 16.4, digital, 22 nm"
    for bits, efficiency, rate in ((4, 89.0, 3.29), (8, 24.7, 0.917)):
        macro = Macro(
            False, 256, 256 // bits, input_bits=bits, weight_bits=bits, volts=0.72, node=22,
            cell_area=65_536 * usual["cell_area"], input_toggles=usual["input_toggles"],
            weight_ones=usual["weight_ones"],
        )  # fmt: skip
        low = "activity and supply at which it was measured are not in our sources; with all toggling +65 %"
        rows.append(Row(chip, f"energy, {bits} bits", "fJ/MAC", 2000 / efficiency, energy_per_mac(macro), HELD_OUT,
                        _ENERGY, low))  # fmt: skip
        period = 2 * 256 * (256 // bits) / bits / (rate * 1e12) * 1e9
        slow = "delays are of 28 nm and ripple adders; a compiled tree of 22 nm is faster"
        rows.append(Row(chip, f"clock period, {bits} bits", "ns", period, clock_period(macro), HELD_OUT, _TIME, slow))
        if bits == 4:
            tight = "its full adders and cells are drawn by hand; ours are gates of a library"
            mm2 = sum(areas(macro).values()) * 1e-6
            rows.append(Row(chip, "area", "mm2", 0.202, mm2, HELD_OUT, _AREA, tight))
    adc, dac, mac = adc_energy(8, 0.7), dac_energy(8, 0.7), 2000 / 32.0
    chip, flat = (
        "Wang VLSI 2022, 22 nm, 0.7 V",
        "the survey law is of the best converters published; see --vary adc.law",
    )
    rows.append(Row(chip, "one 8-bit ADC conversion", "fJ", 0.34 * mac * 64, adc, HELD_OUT, _ENERGY, flat))
    rows.append(Row(chip, "one 8-bit DAC value", "fJ", 0.22 * mac * 16, dac, HELD_OUT, _ENERGY))
    return rows


def not_modelled() -> list[Row]:
    """Rows that stay in the table with the reason why nothing is compared."""
    data = "the macro equations know shares of ones and changes, not output codes"
    cells = "RRAM with voltage-mode neurons: the macro equations are for SRAM"
    return [
        Row(
            "Sinangil JSSC 2021, 7 nm",
            "mean code 15 over 0",
            "ratio of energy",
            7.795 / 3.357,
            None,
            HELD_OUT,
            why=data,
        ),
        Row("NeuRRAM Nature 2022, 130 nm", "3-bit output, 1-bit input", "TOPS/W", 43.1, None, HELD_OUT, why=cells),
        Row("NeuRRAM Nature 2022, 130 nm", "10-bit output, 8-bit input", "TOPS/W", 6.44, None, HELD_OUT, why=cells),
    ]
