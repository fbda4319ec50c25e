"""Sums of lanes of several vectors at once: the tree of sum_floats for each of them, its steps shared."""

from __future__ import annotations

from llvmlite import ir

from runtime_py.simd.vectors import shuffle


def _halves(builder: ir.IRBuilder, a: ir.Value, size: int, b: ir.Value | None = None) -> ir.Value:
    """Every part of 2 * `size` lanes of a, and behind them of b, as the sums of its halves."""
    lanes = a.type.count * (1 if b is None else 2)
    low = [i for i in range(lanes) if i % (2 * size) < size]
    return builder.fadd(shuffle(builder, a, low, b), shuffle(builder, a, [i + size for i in low], b))


def emit_sums(builder: ir.IRBuilder, totals: list[ir.Value]) -> ir.Value:
    """sum_floats of each of 1, 2, 4, 8 or 16 vectors."""
    size = totals[0].type.count
    while size > 1:
        size //= 2
        if len(totals) > 1:
            totals = [_halves(builder, a, size, b) for a, b in zip(totals[::2], totals[1::2])]
        else:
            totals = [_halves(builder, totals[0], size)]
    return totals[0]
