"""The inner loops over a razored cache, for a literal number of query rows: codes are unpacked once for all of them."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.simd.integers import emit_nibbles
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.vectors import I32, I64, Bytes, Ints, load, pointer, splat


def _at(builder: ir.IRBuilder, base: ir.Value, offset: int) -> ir.Value:
    return builder.add(base, ir.Constant(I64, offset))


def _four(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Four bytes, repeated in all lanes."""
    return builder.bitcast(splat(builder, load(builder, address, I32), 16), Bytes.llvm)


def _constant(vector: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


@intrinsic(prefer_literal=True)
def razor_scores(
    typingctx, isa, rows, block, eights, per_group, groups, queries, query_stride, wide, corrections,
    correction_stride, out, out_stride,
):  # fmt: skip
    """out[r] (16 int32) = scores of query row r against the 16 keys of a block (layout in razor_attend.py).

    queries: high bytes of row 0, its low bytes `wide` further; rows lie query_stride bytes apart. corrections: int32
    [groups] of row 0. A group is per_group times 8 dimensions, `eights` of them in all.
    """
    height, name = rows.literal_value, isa.value

    def codegen(context, builder, signature, args):
        _, _, block, eights, per_group, groups, queries, query_stride, wide, corrections, apart, out, out_stride = args
        zero = _constant(Ints.llvm, 0)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(height)]
        high = [cgutils.alloca_once(builder, Ints.llvm) for _ in range(height)]
        low = [cgutils.alloca_once(builder, Ints.llvm) for _ in range(height)]
        for slot in totals:
            builder.store(zero, slot)
        rows_at = [builder.add(queries, builder.mul(query_stride, ir.Constant(I64, r))) for r in range(height)]
        flags = builder.add(block, builder.mul(eights, ir.Constant(I64, 64)))
        with cgutils.for_range(builder, groups) as group:
            place = builder.add(corrections, builder.mul(group.index, ir.Constant(I64, 4)))
            for r in range(height):
                own = load(builder, builder.add(place, builder.mul(apart, ir.Constant(I64, r))), I32)
                builder.store(zero, high[r])
                builder.store(splat(builder, own, 16), low[r])
            first = builder.mul(group.index, per_group)
            left = builder.sub(eights, first)
            count = builder.select(builder.icmp_signed("<", left, per_group), left, per_group)
            with cgutils.for_range(builder, count) as loop:
                j = builder.add(first, loop.index)
                codes = load(builder, builder.add(block, builder.mul(j, ir.Constant(I64, 64))), Bytes.llvm)
                early = builder.and_(codes, _constant(Bytes.llvm, 15))
                late = builder.lshr(codes, _constant(Bytes.llvm, 4))
                offset = builder.mul(j, ir.Constant(I64, 8))
                for r in range(height):
                    top = builder.add(rows_at[r], offset)
                    bottom = builder.add(top, wide)
                    for slot, digits in ((high[r], top), (low[r], bottom)):
                        acc = emit_dot(builder, name, builder.load(slot), early, _four(builder, digits))
                        acc = emit_dot(builder, name, acc, late, _four(builder, _at(builder, digits, 4)))
                        builder.store(acc, slot)
            shifts = emit_nibbles(builder, builder.add(flags, builder.mul(group.index, ir.Constant(I64, 8))))
            for r in range(height):
                whole = builder.shl(builder.load(high[r]), _constant(Ints.llvm, 8))
                mac = builder.shl(builder.add(whole, builder.load(low[r])), shifts)
                builder.store(builder.add(builder.load(totals[r]), mac), totals[r])
        for r in range(height):
            where = builder.add(out, builder.mul(out_stride, ir.Constant(I64, r)))
            builder.store(builder.load(totals[r]), pointer(builder, where, Ints.llvm), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(isa, rows, *[i64] * 11), codegen


@intrinsic(prefer_literal=True)
def razor_mix(typingctx, isa, rows, codes, digits, digit_stride, sums, sum_stride):
    """sums[r] (int32 [3][16]) += digits of 16 probabilities of row r times 16 cached values of 16 dimensions.

    codes: 128 bytes; digits: three times 16 bytes a row, digit_stride bytes between rows; sum_stride likewise.
    """
    height, name = rows.literal_value, isa.value

    def codegen(context, builder, signature, args):
        _, _, codes, digits, digit_stride, sums, sum_stride = args
        eight = _constant(Bytes.llvm, 8)
        quads = []
        for half in range(2):
            stored = load(builder, _at(builder, codes, 64 * half), Bytes.llvm)
            quads.append(builder.sub(builder.and_(stored, _constant(Bytes.llvm, 15)), eight))
            quads.append(builder.sub(builder.lshr(stored, _constant(Bytes.llvm, 4)), eight))
        for r in range(height):
            own = builder.add(digits, builder.mul(digit_stride, ir.Constant(I64, r)))
            place = builder.add(sums, builder.mul(sum_stride, ir.Constant(I64, r)))
            for i in range(3):
                where = _at(builder, place, 64 * i)
                acc = load(builder, where, Ints.llvm)
                for q, values in enumerate(quads):
                    acc = emit_dot(builder, name, acc, _four(builder, _at(builder, own, 16 * i + 4 * q)), values)
                builder.store(acc, pointer(builder, where, Ints.llvm), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(isa, rows, *[i64] * 5), codegen
