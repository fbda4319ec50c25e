"""Operations on Ints (16 x int32) that razored codes need: shifts by lane, flags from nibbles, sums beyond 32 bits."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.simd.vectors import I8, I16, I32, I64, Floats, Ints, _pure, fold, load, pointer, shuffle, splat

_LONGS = ir.VectorType(I64, 16)


def _extreme(builder: ir.IRBuilder, sign: str, x: ir.Value, y: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed(sign, x, y), x, y)


def _absolute(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _extreme(builder, ">", x, builder.neg(x))


def _with_sign(builder: ir.IRBuilder, x: ir.Value, sign: ir.Value) -> ir.Value:
    negative = builder.icmp_signed("<", sign, ir.Constant(Ints.llvm, [0] * 16))
    return builder.select(negative, builder.neg(x), x)


def _wide(builder: ir.IRBuilder, x: ir.Value, by: int) -> ir.Value:
    """x << by in 64 bits."""
    return builder.shl(builder.sext(x, _LONGS), ir.Constant(_LONGS, [by] * 16))


def _join16(builder: ir.IRBuilder, high: ir.Value, low: ir.Value) -> ir.Value:
    return builder.sitofp(builder.add(_wide(builder, high, 16), _wide(builder, low, 0)), Floats.llvm)


def _join7(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    total = builder.add(builder.add(_wide(builder, a, 0), _wide(builder, b, 7)), _wide(builder, c, 14))
    return builder.sitofp(total, Floats.llvm)


def _sum_wide(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return fold(builder, builder.sext(x, _LONGS), builder.add)


def _below(builder: ir.IRBuilder, x: ir.Value, count: ir.Value, other: ir.Value) -> ir.Value:
    limit = splat(builder, builder.trunc(count, I32), 16)
    lanes = ir.Constant(Ints.llvm, list(range(16)))
    return builder.select(builder.icmp_signed("<", lanes, limit), x, other)


def _flag_lanes(builder: ir.IRBuilder, address: ir.Value, places: ir.Value) -> ir.Value:
    word = builder.zext(load(builder, address, I16), I32)
    moved = builder.lshr(splat(builder, word, 16), places)
    return builder.and_(moved, ir.Constant(Ints.llvm, [15] * 16))


def emit_nibbles(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 nibbles of the 8 bytes at the address, the earlier in the low half, as int32."""
    eight = load(builder, address, ir.VectorType(I8, 8))
    both = builder.zext(shuffle(builder, eight, [i // 2 for i in range(16)]), Ints.llvm)
    moved = builder.lshr(both, ir.Constant(Ints.llvm, [0, 4] * 8))
    return builder.and_(moved, ir.Constant(Ints.llvm, [15] * 16))


splat_int = _pure(Ints, (types.int32,), lambda b, v: splat(b, v, 16))
subtract_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: b.sub(x, y))
multiply_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: b.mul(x, y))
and_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: b.and_(x, y))
or_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: b.or_(x, y))
shift_left = _pure(Ints, (Ints, Ints), lambda b, x, y: b.shl(x, y))
shift_right = _pure(Ints, (Ints, Ints), lambda b, x, y: b.ashr(x, y))
minimum_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: _extreme(b, "<", x, y))
maximum_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: _extreme(b, ">", x, y))
absolute_ints = _pure(Ints, (Ints,), _absolute)
with_sign = _pure(Ints, (Ints, Ints), _with_sign)  # the first, negated where the second is negative
or_lanes = _pure(types.int32, (Ints,), lambda b, v: fold(b, v, b.or_))
sum_wide = _pure(types.int64, (Ints,), _sum_wide)  # the lanes' sum, exact
join16 = _pure(Floats, (Ints, Ints), _join16)  # float(high * 2**16 + low), rounded once
join7 = _pure(Floats, (Ints, Ints, Ints), _join7)  # float(a + b * 2**7 + c * 2**14), rounded once
below = _pure(Ints, (Ints, types.int64, Ints), _below)  # lanes under the count from the first, else from the last
flag_lanes = _pure(Ints, (types.int64, Ints), _flag_lanes)  # (16 bits at the address >> lane's place) & 15
nibbles = _pure(Ints, (types.int64,), emit_nibbles)  # 16 nibbles of 8 bytes, the earlier in the low half
leading = _pure(  # place of the leading one, counted from 1; 0 for zero
    types.int64,
    (types.int32,),
    lambda b, v: b.zext(b.sub(ir.Constant(I32, 32), b.ctlz(v, ir.Constant(ir.IntType(1), 0))), I64),
)


@intrinsic
def store_low_bytes(typingctx, address, value):
    """The low byte of each lane to 16 bytes at `address`."""

    def codegen(context, builder, signature, args):
        value = builder.trunc(args[1], ir.VectorType(I8, 16))
        builder.store(value, pointer(builder, args[0], value.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, Ints), codegen
