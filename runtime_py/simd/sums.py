"""Sums of lanes of four vectors at once: the tree of sum_floats for each of them, its steps shared."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.simd.vectors import FLOAT, I64, Floats, load, pointer, shuffle

_FOUR = ir.VectorType(FLOAT, 4)


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


@intrinsic
def finish_four(typingctx, totals, factors, shift, out, accumulate):
    """out[i] (= or +=) factors[i] * sum_floats(totals[i]) + shift[i], for i < 4; to the bit what scalars give.

    totals: address of float32 [4, 16]; factors, shift, out: addresses of float32 [4], shift may be 0; accumulate: bool.
    """

    def codegen(context, builder, signature, args):
        totals, factors, shift, out, accumulate = args
        a, b, c, d = (load(builder, builder.add(totals, ir.Constant(I64, 64 * i)), Floats.llvm) for i in range(4))
        scaled = builder.fmul(emit_sums(builder, [a, b, c, d]), load(builder, factors, _FOUR))
        before = builder.block
        with builder.if_then(builder.icmp_signed("!=", shift, ir.Constant(I64, 0))):
            shifted, behind = builder.fadd(scaled, load(builder, shift, _FOUR)), builder.block
        value = builder.phi(_FOUR)
        value.add_incoming(scaled, before)
        value.add_incoming(shifted, behind)
        before = builder.block
        with builder.if_then(accumulate):
            added, behind = builder.fadd(value, load(builder, out, _FOUR)), builder.block
        result = builder.phi(_FOUR)
        result.add_incoming(value, before)
        result.add_incoming(added, behind)
        builder.store(result, pointer(builder, out, _FOUR), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, types.boolean), codegen
