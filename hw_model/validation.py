"""The model against published silicon. Macros, AttentionLego and boards: computed from what prices a target.

ISAAC and PUMA re-add published component tables; the rows of _arithmetic and _laws check counting and scaling rules:
they confirm how figures are put together, not constants that a target uses.
Parameters and published figures: the project's hardware notes, which name the papers. Rows whose activity was not
published are not compared (their `modelled` is None, `why` says so). python -m hw_model.validation prints the table.
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
    TO_SUM,
    full_adder_energy,
    multiplier_energy,
    register_energy,
    tree_adders,
    tree_delay,
)

_ADDER, _REGISTER, _TIMES = full_adder_energy(0.9), register_energy(0.9), multiplier_energy(0.9)


@dataclass(frozen=True)
class Row:
    """One comparison. tolerance: the largest relative error that tests accept; None compares nothing."""

    chip: str
    quantity: str
    unit: str
    published: float
    modelled: float | None
    tolerance: float = 0.0
    why: str = ""

    @property
    def error(self) -> float | None:
        """Relative error of the model."""
        return None if self.modelled is None else self.modelled / self.published - 1


def rows() -> list[Row]:
    """Every validation row."""
    groups = (_digital_macros, _analog_macros, _isaac, _puma, _arithmetic, _laws, _converters, _system, _not_modelled)
    return [row for group in groups for row in group()]


def _digital_macros() -> list[Row]:
    """Four digital SRAM macros, after ZigZag-IMC's validation scripts (arXiv 2305.18335)."""
    d1_multiplier = 32 * 8 * _TIMES  # fJ per output and cycle; Booth digits of 8 bits
    d1_tree = tree_adders(32, 9)
    d1_area = 384 * (
        32 * 8 * NAND_AREA + d1_tree * FULL_ADDER_AREA + 32 * (FULL_ADDER_AREA + REGISTER_AREA)
    ) + 64 * (5 * (65 * FULL_ADDER_AREA + 32 * 1.764)) + 64 * 655.45  # fmt: skip
    d1_clock = NAND_DELAY + tree_delay(32, 9) + TO_SUM + CARRY * (32 - 14)
    macs = 32 / 4  # of one output and cycle: 8 input bits, two at a time
    d1_energy = (
        d1_multiplier * 0.25 + d1_tree * _ADDER * 0.25 + 32 * (_ADDER + _REGISTER)
    ) / macs  # half of the input bits change, half of the weight bits are one
    d2_area = 2 * (32 * 8 * NAND_AREA + 522 * FULL_ADDER_AREA + 32 * (16 * FULL_ADDER_AREA + 24 * REGISTER_AREA)) + 7920
    d2_clock = tree_delay(32, 16) + TO_SUM
    d3_trees, d3_last = tree_adders(128, 2), tree_adders(8, 16)
    d3_area = 64 * (256 * NAND_AREA + d3_trees * FULL_ADDER_AREA) + 8 * (
        d3_last * FULL_ADDER_AREA + 23 * (FULL_ADDER_AREA + REGISTER_AREA) + 1931.47
    )
    d3_clock = NAND_DELAY + tree_delay(128, 2) + tree_delay(8, 16) + TO_SUM + 6 * CARRY
    d3_energy = (
        8 * (256 * _TIMES * 0.25 + d3_trees * _ADDER * 0.25) + d3_last * _ADDER + 23 * (_ADDER + _REGISTER)
    ) / (128 / 4)
    d4_adders = 64 * tree_adders(16, 1) + 8 * tree_adders(8, 4) + tree_adders(8, 6)
    d4_logic = 128 * NAND_AREA + d4_adders * FULL_ADDER_AREA + 17 * FULL_ADDER_AREA + 65 * REGISTER_AREA
    d4_area = 32 * d4_logic + 4 * 4167.28
    d4_clock = NAND_DELAY + tree_delay(16, 1) + tree_delay(8, 4)
    unknown = "activity not published"
    return [
        Row("ISSCC 2022 15.5, digital, 28 nm", "area", "mm2", 0.9408, d1_area * 1e-6, 0.40),
        Row("ISSCC 2022 15.5, digital, 28 nm", "clock period", "ns", 5.128, d1_clock, 0.20),
        Row("ISSCC 2022 15.5, digital, 28 nm", "energy", "fJ/MAC", 54.60, d1_energy, 0.15),
        Row("ISSCC 2022 11.7, digital, 28 nm", "area", "mm2", 0.0300, d2_area * 1e-6, 0.40),
        Row("ISSCC 2022 11.7, digital, 28 nm", "clock period", "ns", 3.0, d2_clock, 0.20),
        Row("ISSCC 2022 11.7, digital, 28 nm", "energy", "fJ/MAC", 2000 / 22, None, why=unknown),
        Row("ISSCC 2023 7.2, digital, 28 nm", "area", "mm2", 0.1462, d3_area * 1e-6, 0.40),
        Row("ISSCC 2023 7.2, digital, 28 nm", "clock period", "ns", 5.495, d3_clock, 0.20),
        Row("ISSCC 2023 7.2, digital, 28 nm", "energy", "fJ/MAC", 102.56, d3_energy, 0.15),
        Row("ISSCC 2023 16.3, digital, 28 nm", "area", "mm2", 0.269, d4_area * 1e-6, 0.40),
        Row("ISSCC 2023 16.3, digital, 28 nm", "clock period", "ns", 2.5, d4_clock, 0.20),
        Row("ISSCC 2023 16.3, digital, 28 nm", "energy", "fJ/MAC", 2000 / 275, None, why=unknown),
    ]


def _analog_macros() -> list[Row]:
    """Three analog SRAM macros, as above; 22 nm chips: areas and all but converter energy times 22 / 28, at 0.8 V."""
    shrink, volts = 22 / 28, 0.8
    a1_line = 1024 * (0.7 + 0.7 + 0.35) * volts**2 * shrink
    a1_energy = (a1_line + adc_energy(6, volts) + 1024 * dac_energy(7, volts) / 512) / 1024
    a1_area = (1024 * 512 * 2 * NAND_AREA + 512 * adc_area(6)) * shrink + 489_940
    a1_clock = NAND_DELAY + adc_delay(6, 1024)
    a2_outputs = 48
    a2_area = a2_outputs * (
        64 * NAND_AREA + 131 * FULL_ADDER_AREA + 20 * (FULL_ADDER_AREA + REGISTER_AREA) + 80 * REGISTER_AREA
        + 16 * adc_area(5)
    ) + 4 * 36_045  # fmt: skip
    a2_clock = 2 * (NAND_DELAY + adc_delay(5, 16))
    a3_logic = (
        16 * 0.5 * NAND_CAPACITANCE * 0.375 * 0.5 + 6 * 6 * NAND_CAPACITANCE * 0.5 + 64 * 0.5 * NAND_CAPACITANCE * 0.5
    )
    a3_energy = a3_logic * volts**2 * shrink + adc_energy(3, volts) * 0.5
    a3_area = (131_072 * NAND_AREA + 2048 * 6 * FULL_ADDER_AREA + 2048 * adc_area(7) + 36_044) * shrink
    a3_clock = NAND_DELAY + TO_CARRY + 5 * CARRY + adc_delay(3, 8)
    unknown = "activity not published"
    return [
        Row("CICC 2021, analog, 22 nm", "area", "mm2", 1.9425, a1_area * 1e-6, 0.40),
        Row("CICC 2021, analog, 22 nm", "clock period", "ns", 44.44, a1_clock, 0.20),
        Row("CICC 2021, analog, 22 nm", "energy", "fJ/MAC", 1.905, a1_energy, 0.15),
        Row("JSSC 2023, analog, 28 nm", "area", "mm2", 0.468, a2_area * 1e-6, 0.40),
        Row("JSSC 2023, analog, 28 nm", "clock period", "ns", 7.2, a2_clock, 0.20),
        Row("JSSC 2023, analog, 28 nm", "energy", "fJ/MAC", 133.2, None, why=unknown),
        Row("ISSCC 2023 7.8, analog, 22 nm", "area", "mm2", 1.88, a3_area * 1e-6, 0.40),
        Row("ISSCC 2023 7.8, analog, 22 nm", "clock period", "ns", 2.747, a3_clock, 0.20),
        Row("ISSCC 2023 7.8, analog, 22 nm", "energy", "fJ/MAC", 106.95, a3_energy, 0.15),
    ]


def _isaac() -> list[Row]:
    """ISAAC-CE (ISCA 2016): component table to tile, chip and peak figures."""
    ima_mw = 16 + 4 + 0.01 + 2.4 + 0.2 + 1.24 + 0.23
    ima_mm2 = 0.0096 + 0.00017 + 0.00004 + 0.0002 + 0.00024 + 0.0021 + 0.00077
    tile_mw = 12 * ima_mw + 20.7 + 7 + 10.5 + 0.52 + 0.05 + 0.4 + 1.68
    tile_mm2 = 12 * ima_mm2 + 0.083 + 0.090 + 0.0378 + 0.0006 + 0.00006 + 0.00024 + 0.0032
    watts, mm2 = 168 * tile_mw * 1e-3 + 10.4, 168 * tile_mm2 + 22.88
    macs = 168 * 12 * 8 * (128 * 128 // 8)  # 8 cells of 2 bits a weight
    peak = 2 * macs / (16 * 100e-9)  # 16 input bits, 100 ns each
    return [
        Row("ISAAC-CE, 32 nm", "tile power", "mW", 330, tile_mw, 0.005),
        Row("ISAAC-CE, 32 nm", "tile area", "mm2", 0.372, tile_mm2, 0.005),
        Row("ISAAC-CE, 32 nm", "chip power", "W", 65.8, watts, 0.005),
        Row("ISAAC-CE, 32 nm", "chip area", "mm2", 85.4, mm2, 0.005),
        Row("ISAAC-CE, 32 nm", "peak", "TOPS", 41.3, peak * 1e-12, 0.005),
        Row("ISAAC-CE, 32 nm", "efficiency", "GOPS/W", 627, peak * 1e-9 / watts, 0.005),
        Row("ISAAC-CE, 32 nm", "density", "GOPS/mm2", 483, peak * 1e-9 / mm2, 0.005),
    ]


def _puma() -> list[Row]:
    """PUMA (ASPLOS 2019), from its simulator's constants."""
    core = 0.25 + 1.52 + 0.477 + 2 * 19.09 + 1.90 + 0.055
    tile = 8 * core + 17.66 + 7 + 2.77 + 9.14 + 1.91
    return [
        Row("PUMA, 32 nm", "tile power", "mW", 373.8, tile, 0.02),
        Row("PUMA, 32 nm", "chip power", "W", 62.5, 138 * tile * 1e-3 + 0.571 + 10.4, 0.02),
    ]


def _arithmetic() -> list[Row]:
    """Checks without a fitted constant: products per cycle and time."""
    from hw_model.machines.attentionlego import published_cycles

    keys = published_cycles()
    return [
        Row("Jia JSSC 2020, 65 nm, 0.85 V", "peak, 1 bit", "TOPS", 0.874, 2 * 768 * 768 / (54 * 25e-9) * 1e-12, 0.005),
        Row("Sinangil JSSC 2021, 7 nm, 0.8 V", "peak, 4 bits", "GOPS", 372.4, 2 * 64 * 16 / 5.5, 0.005),
        Row(
            "Wang VLSI 2022, 22 nm, 0.7 V",
            "density, 8 bits",
            "TOPS/mm2",
            2.377,
            2 * 64 * 16 / 6.9e-9 / 0.124 * 1e-12,
            0.01,
        ),
        Row("AttentionLego RTL", "scores of 2,048 keys", "cycles", 18433, keys["scores"], 0.0),
        Row("AttentionLego RTL", "one projection", "cycles", 66, keys["projection"], 0.0),
        Row("AttentionLego RTL", "one key written", "cycles", 64, keys["key"], 0.0),
    ]


def _laws() -> list[Row]:
    """Width and voltage laws, fitted on one point and predicting others."""
    wang = 2 * 64 * 16 / 6.9e-9 / 0.124 * 1e-12
    base = 725.0  # Colonnade, fJ per MAC at 8 bits and 0.7 V
    return [
        Row("Chih ISSCC 2021 16.4, 22 nm", "4 bits over 8 bits", "ratio of TOPS/W", 89 / 24.7, (8 / 4) ** 2, 0.15),
        Row("Wang VLSI 2022, 1.1 V", "density, delay as 1 / V^1.1", "TOPS/mm2", 3.941, wang * (1.1 / 0.7) ** 1.1, 0.02),
        Row("Colonnade JSSC 2021, 65 nm, 0.7 V", "4 bits, square law from 8", "fJ/MAC", 261, base / 4, 0.35),
        Row("Colonnade JSSC 2021, 65 nm, 0.7 V", "16 bits, square law from 8", "fJ/MAC", 2516, base * 4, 0.20),
        Row(
            "Colonnade JSSC 2021, 65 nm, 0.8 V", "8 bits, V^2 from 0.7 V", "fJ/MAC", 1170, base * (0.8 / 0.7) ** 2, 0.25
        ),
        Row(
            "Sinangil JSSC 2021, 7 nm, 1.0 V", "energy, V^1.7 from 0.8 V", "pJ", 13.13, 9.03 * (1.0 / 0.8) ** 1.7, 0.05
        ),
    ]


def _converters() -> list[Row]:
    """Parts of two analog chips. Jia: energy per column at 1.2 V from that at 0.85 V by the square of the voltage.

    Wang: 32 TOPS/W at 0.7 V are 62.5 fJ/MAC, of which 34 % are the ADC's (one conversion sums 64 products) and 22 % the
    DAC's (one value meets 16 outputs); against our laws at 8 bits.
    """
    square, mac = (1.2 / 0.85) ** 2, 2000 / 32.0
    jia = [
        Row("Jia JSSC 2020, 65 nm, 1.2 V", f"{part} energy per column, V^2 from 0.85 V", "pJ", high, low * square, 0.15)
        for part, low, high in (("ADC", 1.79, 3.56), ("array", 9.7, 20.4), ("datapath", 8.3, 14.7))
    ]
    adc, dac = adc_energy(8, 0.7), dac_energy(8, 0.7)
    return [
        *jia,
        Row("Wang VLSI 2022, 22 nm, 0.7 V", "one 8-bit ADC conversion", "fJ", 0.34 * mac * 64, adc, 0.75),
        Row("Wang VLSI 2022, 22 nm, 0.7 V", "one 8-bit DAC value", "fJ", 0.22 * mac * 16, dac, 0.20),
    ]


def _system() -> list[Row]:
    """A whole transformer, and board-level decode rows."""
    from targets import load_target

    linear = 84.93e6 * 2 / 12.5e12 * 1e6  # uJ per token: BERT-base's linear layers at the macro's efficiency
    attention = 1.3  # uJ, INT16 at length 128
    found = [Row("TranCIM ISSCC 2022 29.3, BERT-base", "energy per token", "uJ", 15.59, linear + attention, 0.15)]
    bandwidth = load_target("rpi5")["memory_bandwidth"]
    for model, size, speed in (
        ("3B, 8 GB board", 2.01, 4.61), ("8B, 8 GB board", 4.92, 1.99), ("3B, 16 GB board", 2.01, 4.88),
        ("8B, 16 GB board", 4.92, 2.17), ("13B, 16 GB board", 7.37, 1.36),
    ):  # fmt: skip
        found.append(Row(f"Raspberry Pi 5, {model}", "decode", "tokens/s", speed, bandwidth / (size * 1e9), 0.15))
    laptop = load_target("laptop-x86")["memory_bandwidth"]
    for model, size, speed in (("Ryzen AI 5 340, 3B", 2.01, 23.81), ("Ryzen 7 8840U, 8B", 4.92, 9.63)):
        found.append(Row(model, "decode", "tokens/s", speed, laptop / (size * 1e9), 0.15))
    # Our own runtime on a 2-core Xeon (athena-export bench, one run): the bandwidth is fitted on TinyLlama at
    # 4 bits and predicts the others.
    share = 49.0 * 557_991_168
    for model, size, speed in (
        ("TinyLlama-1.1B, 3 bits", 433_726_720, 62.1), ("Qwen2.5-0.5B, 4 bits", 319_477_504, 87.0),
        ("Qwen2.5-0.5B, 3 bits", 274_577_152, 93.3),
    ):  # fmt: skip
        found.append(Row(f"this runtime, 2-core Xeon, {model}", "decode", "tokens/s", speed, share / size, 0.15))
    return found


def _not_modelled() -> list[Row]:
    """Rows that stay in the table with the reason why nothing is compared."""
    data = "the macro equations know shares of ones and changes, not output codes"
    cells = "RRAM with voltage-mode neurons: the macro equations are for SRAM"
    return [
        Row("Sinangil JSSC 2021, 7 nm", "mean code 15 over 0", "ratio of energy", 7.795 / 3.357, None, why=data),
        Row("NeuRRAM Nature 2022, 130 nm", "3-bit output, 1-bit input", "TOPS/W", 43.1, None, why=cells),
        Row("NeuRRAM Nature 2022, 130 nm", "10-bit output, 8-bit input", "TOPS/W", 6.44, None, why=cells),
    ]


def markdown() -> str:
    """The table of docs/validation.md."""
    lines = ["| chip | quantity | published | modelled | error | accepted |", "|---|---|---|---|---|---|"]
    for row in rows():
        if row.modelled is None:
            cells = ["-", row.why, "-"]
        else:
            error = 100 * (row.error or 0.0)
            cells = [f"{row.modelled:.4g} {row.unit}", f"{error:+.1f} %", f"{100 * row.tolerance:g} %"]
        lines.append(f"| {row.chip} | {row.quantity} | {row.published:.4g} {row.unit} | " + " | ".join(cells) + " |")
    known = [abs(row.error) for row in rows() if row.error is not None]
    lines.append("")
    mean = math.exp(sum(map(math.log1p, known)) / len(known)) - 1
    lines.append(f"{len(known)} comparisons; geometric mean error {100 * mean:.1f} %.")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
