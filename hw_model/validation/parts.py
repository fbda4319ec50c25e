"""Published component tables put together again, and rules of counting and scaling checked on chips.

No constant of a target is in these rows: they confirm how figures are put together.
"""

from __future__ import annotations

from hw_model.machines.attentionlego import published_cycles
from hw_model.validation.row import RE_ADDED, Row


def _row(chip: str, quantity: str, unit: str, published: float, modelled: float, aim: float) -> Row:
    return Row(chip, quantity, unit, published, modelled, RE_ADDED, aim)


def isaac() -> list[Row]:
    """ISAAC-CE (ISCA 2016): component table to tile, chip and peak figures."""
    ima_mw = 16 + 4 + 0.01 + 2.4 + 0.2 + 1.24 + 0.23
    ima_mm2 = 0.0096 + 0.00017 + 0.00004 + 0.0002 + 0.00024 + 0.0021 + 0.00077
    tile_mw = 12 * ima_mw + 20.7 + 7 + 10.5 + 0.52 + 0.05 + 0.4 + 1.68
    tile_mm2 = 12 * ima_mm2 + 0.083 + 0.090 + 0.0378 + 0.0006 + 0.00006 + 0.00024 + 0.0032
    watts, mm2 = 168 * tile_mw * 1e-3 + 10.4, 168 * tile_mm2 + 22.88
    macs = 168 * 12 * 8 * (128 * 128 // 8)  # 8 cells of 2 bits a weight
    peak = 2 * macs / (16 * 100e-9)  # 16 input bits, 100 ns each
    return [
        _row("ISAAC-CE, 32 nm", "tile power", "mW", 330, tile_mw, 0.005),
        _row("ISAAC-CE, 32 nm", "tile area", "mm2", 0.372, tile_mm2, 0.005),
        _row("ISAAC-CE, 32 nm", "chip power", "W", 65.8, watts, 0.005),
        _row("ISAAC-CE, 32 nm", "chip area", "mm2", 85.4, mm2, 0.005),
        _row("ISAAC-CE, 32 nm", "peak", "TOPS", 41.3, peak * 1e-12, 0.005),
        _row("ISAAC-CE, 32 nm", "efficiency", "GOPS/W", 627, peak * 1e-9 / watts, 0.005),
        _row("ISAAC-CE, 32 nm", "density", "GOPS/mm2", 483, peak * 1e-9 / mm2, 0.005),
    ]


def puma() -> list[Row]:
    """PUMA (ASPLOS 2019), from its simulator's constants."""
    core = 0.25 + 1.52 + 0.477 + 2 * 19.09 + 1.90 + 0.055
    tile = 8 * core + 17.66 + 7 + 2.77 + 9.14 + 1.91
    return [
        _row("PUMA, 32 nm", "tile power", "mW", 373.8, tile, 0.02),
        _row("PUMA, 32 nm", "chip power", "W", 62.5, 138 * tile * 1e-3 + 0.571 + 10.4, 0.02),
    ]


def arithmetic() -> list[Row]:
    """Checks without a fitted constant: products per cycle and time."""
    keys = published_cycles()
    return [
        _row("Jia JSSC 2020, 65 nm, 0.85 V", "peak, 1 bit", "TOPS", 0.874, 2 * 768 * 768 / (54 * 25e-9) * 1e-12, 0.005),
        _row("Sinangil JSSC 2021, 7 nm, 0.8 V", "peak, 4 bits", "GOPS", 372.4, 2 * 64 * 16 / 5.5, 0.005),
        _row(
            "Wang VLSI 2022, 22 nm, 0.7 V",
            "density, 8 bits",
            "TOPS/mm2",
            2.377,
            2 * 64 * 16 / 6.9e-9 / 0.124 * 1e-12,
            0.01,
        ),
        _row("AttentionLego RTL", "scores of 2,048 keys", "cycles", 18433, keys["scores"], 0.0),
        _row("AttentionLego RTL", "one projection", "cycles", 66, keys["projection"], 0.0),
        _row("AttentionLego RTL", "one key written", "cycles", 64, keys["key"], 0.0),
    ]


def laws() -> list[Row]:
    """Width and voltage laws, fitted on one point and predicting others."""
    wang = 2 * 64 * 16 / 6.9e-9 / 0.124 * 1e-12
    base = 725.0  # Colonnade, fJ per MAC at 8 bits and 0.7 V
    return [
        _row("Chih ISSCC 2021 16.4, 22 nm", "4 bits over 8 bits", "ratio of TOPS/W", 89 / 24.7, (8 / 4) ** 2, 0.15),
        _row(
            "Wang VLSI 2022, 1.1 V", "density, delay as 1 / V^1.1", "TOPS/mm2", 3.941, wang * (1.1 / 0.7) ** 1.1, 0.02
        ),
        _row("Colonnade JSSC 2021, 65 nm, 0.7 V", "4 bits, square law from 8", "fJ/MAC", 261, base / 4, 0.35),
        _row("Colonnade JSSC 2021, 65 nm, 0.7 V", "16 bits, square law from 8", "fJ/MAC", 2516, base * 4, 0.20),
        _row(
            "Colonnade JSSC 2021, 65 nm, 0.8 V", "8 bits, V^2 from 0.7 V", "fJ/MAC", 1170, base * (0.8 / 0.7) ** 2, 0.25
        ),
        _row(
            "Sinangil JSSC 2021, 7 nm, 1.0 V", "energy, V^1.7 from 0.8 V", "pJ", 13.13, 9.03 * (1.0 / 0.8) ** 1.7, 0.05
        ),
    ]


def parts() -> list[Row]:
    """Energy per column of Jia's parts at 1.2 V from that at 0.85 V by the square of the voltage."""
    square = (1.2 / 0.85) ** 2
    return [
        _row(
            "Jia JSSC 2020, 65 nm, 1.2 V", f"{part} energy per column, V^2 from 0.85 V", "pJ", high, low * square, 0.15
        )
        for part, low, high in (("ADC", 1.79, 3.56), ("array", 9.7, 20.4), ("datapath", 8.3, 14.7))
    ]
