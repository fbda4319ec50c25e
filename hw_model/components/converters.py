"""Converters between analog and digital. Three published laws of ADC energy disagree; all are here.

survey: the regression over published ADCs that ZigZag-IMC uses, nearly flat below 7 bits. isaac: the energy of ISAAC's
8-bit ADC (ISCA 2016: 2 mW at 1.2 GS/s, 32 nm) in proportion to the bits. pow2: in proportion to 2**ENOB, the argument
of RAP (arXiv 2411.14733), anchored where the survey law has 8 bits. From 8 to 4 bits they save 2.2x, 2x and 16x.
"""

from __future__ import annotations

LAWS = ("survey", "isaac", "pow2")
_ISAAC_FJ_PER_BIT = 2e-3 / 1.2e9 / 8 * 1e15  # fJ a conversion and bit


def adc_energy(bits: float, volts: float, law: str = "survey") -> float:
    """fJ of one conversion. `bits` is the effective number of bits (ENOB). Raises ValueError on an unknown law."""
    if law == "survey":
        return (100 * bits + 0.001 * 4**bits) * volts**2
    if law == "isaac":
        return _ISAAC_FJ_PER_BIT * bits
    if law == "pow2":
        return adc_energy(8, volts) * 2 ** (bits - 8)
    raise ValueError(f"ADC law {law!r} is unknown; choose one of {', '.join(LAWS)}")


def adc_area(bits: float) -> float:
    """um2 of one converter, 28 nm; a comparator of one bit belongs to the sense amplifier and is free."""
    return 2**bits * 10 ** (1.206 - 0.0369 * bits) if bits > 1 else 0.0


def adc_delay(bits: float, rows: int) -> float:
    """ns of one conversion, settling of a bit line with `rows` cells included."""
    return bits * (0.00653 * rows + 0.640)


def dac_energy(bits: int, volts: float) -> float:
    """fJ of one input driver; a single bit is a plain word line."""
    return 50 * bits * volts**2 if bits > 1 else 0.0


def dac_area(bits: int) -> float:
    """um2 of one input driver of several bits, as ISAAC's (ISCA 2016: 1,024 of one bit in 170 um2) for each level."""
    return 170 / 1024 * 2 ** (bits - 1) if bits > 1 else 0.0
