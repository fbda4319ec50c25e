"""Memories: SRAM by capacity, RRAM by cell, DRAM by interface, and the size of bit-mask sparse storage."""

from __future__ import annotations

import math

# Horowitz, ISSCC 2014, 45 nm: pJ of a 64-bit read. Between and beyond: straight lines in log-log.
_SRAM_READ = ((8 << 10, 10.0), (32 << 10, 20.0), (1 << 20, 100.0))


def sram_read_energy(capacity: float) -> float:
    """J per byte read from one SRAM of `capacity` bytes, 45 nm. A write is taken to cost the same."""
    points = [(math.log(size), math.log(energy)) for size, energy in _SRAM_READ]
    x = math.log(max(capacity, 256))
    (x0, y0), (x1, y1) = points[:2] if x < points[1][0] else points[1:]
    return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)) * 1e-12 / 8


def resistive_pulse_energy(volts: float, seconds: float, ohms: float) -> float:
    """J of one read or write pulse through a cell: V^2 t / R (ISAAC's cell: read 0.03 pJ, set 120 pJ)."""
    return volts**2 * seconds / ohms


def bit_mask_bits(density: float, bits: float) -> float:
    """Stored bits per weight with a presence bit each and `bits` for those that are not zero (arXiv 2303.16100)."""
    return min(1 + density * bits, bits)
