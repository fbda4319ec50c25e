"""The inner loops over a cache of integer codes, for a literal number of query rows: codes are unpacked once for all.

Layouts are in kernels/attention/cached_codes.py. Sums of integers are exact, so every instruction set gives the same.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.machine.isa import WEIGHT_OFFSET
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.vectors import FLOAT, I32, I64, Bytes, Floats, Ints, _pure, call, load, pointer, shuffle, splat

_EIGHT, _FIFTEEN, _SIGN = (ir.Constant(Bytes.llvm, [value] * 64) for value in (8, 15, 128))


def _plus(builder: ir.IRBuilder, base: ir.Value, offset: int) -> ir.Value:
    return builder.add(base, ir.Constant(I64, offset)) if offset else base


def _row(builder: ir.IRBuilder, base: ir.Value, stride: ir.Value, number: int) -> ir.Value:
    return builder.add(base, builder.mul(stride, ir.Constant(I64, number)))


def _four(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Four bytes, repeated in all lanes."""
    return builder.bitcast(splat(builder, load(builder, address, I32), 16), Bytes.llvm)


def _halves(builder: ir.IRBuilder, codes: ir.Value) -> list[ir.Value]:
    """The low and the high nibbles of every byte."""
    return [builder.and_(codes, _FIFTEEN), builder.lshr(codes, ir.Constant(Bytes.llvm, [4] * 64))]


def _times(builder: ir.IRBuilder, value: ir.Value, number: int) -> ir.Value:
    return builder.mul(value, ir.Constant(Ints.llvm, [number] * 16))


def _slots(builder: ir.IRBuilder, count: int) -> list[ir.Value]:
    """Places of sums, which LLVM keeps in registers."""
    found = [cgutils.alloca_once(builder, Ints.llvm) for _ in range(count)]
    for slot in found:
        builder.store(ir.Constant(Ints.llvm, [0] * 16), slot)
    return found


def _add_dot(builder: ir.IRBuilder, isa: str, slot: ir.Value, weights: ir.Value, activations: ir.Value) -> None:
    builder.store(emit_dot(builder, isa, builder.load(slot), weights, activations), slot)


@intrinsic(prefer_literal=True)
def cached_scores(
    typingctx, isa, bits, rows, block, wide, queries, query_stride, corrections, factors, out, out_stride
):
    """out[r] (16 float32) = scores of query row r against the 16 keys of a block.

    queries: high digits (int8 [wide]) of row 0, its low ones behind them; rows lie query_stride bytes apart; a number
    is 255 * high + low. corrections: int32 of each row, what a sum begins with. factors: float32 of each row.
    """
    width, height, name = bits.literal_value, rows.literal_value, isa.value
    chains = 2 if height == 1 else 1  # sums of one row and digit, so that they need not wait for one another

    def codegen(context, builder, signature, args):
        _, _, _, block, wide, queries, query_stride, corrections, factors, out, out_stride = args
        rows_at = [_row(builder, queries, query_stride, r) for r in range(height)]
        sums = [[_slots(builder, chains) for _ in range(2)] for _ in range(height)]

        def add_products(codes, quads, offset):
            for i, quad in enumerate(quads):
                for r in range(height):
                    top = _plus(builder, builder.add(rows_at[r], offset), 4 * i)
                    for digit, at in enumerate((top, builder.add(top, wide))):
                        slot = sums[r][digit][i % chains]
                        _add_dot(builder, name, slot, quad, _four(builder, at))

        count = builder.lshr(wide, ir.Constant(I64, 3))  # of eight dimensions
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, ir.Constant(I64, 8))
            if width == 8:
                at = builder.add(block, builder.mul(loop.index, ir.Constant(I64, 128)))
                quads = [load(builder, _plus(builder, at, 64 * i), Bytes.llvm) for i in range(2)]
                if WEIGHT_OFFSET[name]:
                    quads = [builder.xor(quad, _SIGN) for quad in quads]
            else:
                at = builder.add(block, builder.mul(loop.index, ir.Constant(I64, 64)))
                quads = _halves(builder, load(builder, at, Bytes.llvm))
            add_products(None, quads, offset)
        scales_at = builder.add(block, builder.mul(wide, ir.Constant(I64, 2 * width)))
        scales = load(builder, scales_at, Floats.llvm)
        for r in range(height):
            high, low = (builder.load(parts[0]) for parts in sums[r])
            for extra in range(1, chains):
                high = builder.add(high, builder.load(sums[r][0][extra]))
                low = builder.add(low, builder.load(sums[r][1][extra]))
            begin = splat(builder, load(builder, _plus(builder, corrections, 4 * r), I32), 16)
            total = builder.add(builder.add(_times(builder, high, 255), low), begin)
            factor = splat(builder, load(builder, _plus(builder, factors, 4 * r), FLOAT), 16)
            score = builder.fmul(builder.fmul(builder.sitofp(total, Floats.llvm), scales), factor)
            where = _row(builder, out, out_stride, r)
            builder.store(score, pointer(builder, where, Floats.llvm), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(isa, bits, rows, *[i64] * 8), codegen


@intrinsic(prefer_literal=True)
def cached_mix(
    typingctx, isa, bits, rows, values, block_bytes, blocks, digits, digit_stride, units, totals, total_stride
):
    """totals[r] (16 float32) += units[r] times weights of row r times the values of 16 dimensions.

    values: the codes of these dimensions in the first of `blocks` blocks of 16 positions. digits: int8 [blocks, 2, 16]
    of row 0, rows digit_stride bytes apart; a weight is 128 * first + second. units: float32 of each row.
    """
    width, height, name = bits.literal_value, rows.literal_value, isa.value
    chains = 2 if height == 1 else 1

    def codegen(context, builder, signature, args):
        _, _, _, values, block_bytes, blocks, digits, digit_stride, units, totals, total_stride = args
        rows_at = [_row(builder, digits, digit_stride, r) for r in range(height)]
        sums = [[_slots(builder, chains) for _ in range(2)] for _ in range(height)]
        with cgutils.for_range(builder, blocks) as loop:
            at = builder.add(values, builder.mul(loop.index, block_bytes))
            if width == 8:
                quads = [load(builder, _plus(builder, at, 64 * i), Bytes.llvm) for i in range(4)]
            else:
                pairs = [_halves(builder, load(builder, _plus(builder, at, 64 * i), Bytes.llvm)) for i in range(2)]
                quads = [builder.sub(part, _EIGHT) for pair in pairs for part in pair]
            offset = builder.mul(loop.index, ir.Constant(I64, 32))
            for r in range(height):
                own = builder.add(rows_at[r], offset)
                for digit in range(2):
                    for i, quad in enumerate(quads):
                        weights = _four(builder, _plus(builder, own, 16 * digit + 4 * i))
                        _add_dot(builder, name, sums[r][digit][i % chains], weights, quad)
        for r in range(height):
            high, low = (builder.load(parts[0]) for parts in sums[r])
            for extra in range(1, chains):
                high = builder.add(high, builder.load(sums[r][0][extra]))
                low = builder.add(low, builder.load(sums[r][1][extra]))
            mixed = builder.sitofp(builder.add(_times(builder, high, 128), low), Floats.llvm)
            unit = splat(builder, load(builder, _plus(builder, units, 4 * r), FLOAT), 16)
            where = _row(builder, totals, total_stride, r)
            before = load(builder, where, Floats.llvm)
            total = call(builder, "llvm.fma.v16f32", Floats.llvm, [mixed, unit, before])
            builder.store(total, pointer(builder, where, Floats.llvm), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(isa, bits, rows, *[i64] * 8), codegen


def _butterfly(builder: ir.IRBuilder, value: ir.Value, apart: int) -> ir.Value:
    """Lanes i and i + apart become their sum and their difference."""
    signs = ir.Constant(Floats.llvm, [-1.0 if i & apart else 1.0 for i in range(16)])
    return builder.fadd(shuffle(builder, value, [i ^ apart for i in range(16)]), builder.fmul(value, signs))


butterfly1, butterfly2, butterfly4, butterfly8 = (
    _pure(Floats, (Floats,), lambda builder, value, apart=apart: _butterfly(builder, value, apart))
    for apart in (1, 2, 4, 8)
)
