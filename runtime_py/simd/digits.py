"""High digits of activations (kernels/quantize.py) in integer sums: few groups of four columns have any.

An activation is 255 * high + low. A sum begins with the high digits, is multiplied by 255 and goes on with the low
ones, so that it needs no other accumulator. The places of high digits in a block of 256 columns are an int64: bit i
stands for columns 4i..4i + 3, in the layout for several tokens of any of the 16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.vectors import I32, I64, Bytes, Ints, _pure, call, load, splat


def emit_times_255(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.sub(builder.shl(value, ir.Constant(Ints.llvm, [8] * 16)), value)


times_255 = _pure(Ints, (Ints,), emit_times_255)


@intrinsic
def apart(typingctx):
    """No instruction, at the start of a branch seldom taken: LLVM would begin both branches with what they share, and
    the usual one would have to hold what only the other needs so early.
    """

    def codegen(context, builder, signature, args):
        nothing = ir.FunctionType(ir.VoidType(), [])
        builder.asm(nothing, "", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def filled(typingctx, address):
    """Which of the 16 groups of four bytes at the address are not all zero: bits 0..15 of an int64."""

    def codegen(context, builder, signature, args):
        found = builder.icmp_signed("!=", load(builder, args[0], Ints.llvm), ir.Constant(Ints.llvm, [0] * 16))
        return builder.zext(builder.bitcast(found, ir.IntType(16)), I64)

    return types.int64(types.int64), codegen


def emit_high_digits(
    builder: ir.IRBuilder, isa: str, places: ir.Value, high: ir.Value, rows: list[ir.Value], sums: list[Any]
) -> None:
    """sums (stack slots, one for each row) = 255 * (weights times the high digits at these places of a block).

    high: address of the block's; rows: of its weights as bytes, in each row.
    """
    for slot in sums:
        builder.store(ir.Constant(Ints.llvm, [0] * 16), slot)
    count = call(builder, "llvm.ctpop.i64", I64, [places])
    left = cgutils.alloca_once(builder, I64)
    builder.store(places, left)
    with cgutils.for_range(builder, count):
        bits = builder.load(left)
        place = call(builder, "llvm.cttz.i64", I64, [bits, ir.Constant(ir.IntType(1), 1)])
        builder.store(builder.and_(bits, builder.sub(bits, ir.Constant(I64, 1))), left)
        line = builder.add(builder.mul(place, ir.Constant(I64, 64)), ir.Constant(I64, HIGH_BYTES))
        column = builder.mul(place, ir.Constant(I64, 4))
        tokens = load(builder, builder.add(high, line), Bytes.llvm)
        for row, slot in zip(rows, sums):
            four = builder.bitcast(splat(builder, load(builder, builder.add(row, column), I32), 16), Bytes.llvm)
            builder.store(emit_dot(builder, isa, builder.load(slot), four, tokens), slot)
    for slot in sums:
        builder.store(emit_times_255(builder, builder.load(slot)), slot)


def load_places(builder: ir.IRBuilder, high: ir.Value) -> ir.Value:
    """The places of the high digits of the block at this address."""
    return load(builder, high, I64)
