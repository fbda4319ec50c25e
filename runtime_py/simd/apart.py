"""Sums of several tokens with a few rows of weights, in registers (kernels/apart/).

Weights of a block are a tuple of Bytes, four for each row. Totals are a tuple of Floats, token by token, one for each
row; how many there are is known to the compiler.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.digits import emit_times_255
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.sums import emit_sums
from runtime_py.simd.vectors import FLOAT, I64, Bytes, Floats, Ints, call, load, pointer, shuffle, splat

_HIGH = HIGH_BYTES + 256  # bytes of the high digits of a token's block


def _at(builder: ir.IRBuilder, address: ir.Value, offset: int) -> ir.Value:
    return builder.add(address, ir.Constant(I64, offset))


def _here(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same Floats, computed before anything behind this is: else LLVM puts the sums of all tokens side by side, and
    they do not fit the registers at once.
    """
    kind = ir.FunctionType(Floats.llvm, [Floats.llvm])
    return builder.call(ir.InlineAsm(kind, "", "=v,0,~{memory}", side_effect=True), [value])


@intrinsic
def no_totals(typingctx, rows, count):
    """Totals of nothing, for tags of rows and of tokens."""
    kind = types.UniTuple(Floats, rows.value * count.value)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(rows, count), codegen


@intrinsic(prefer_literal=True)
def add_tokens(typingctx, isa, weights, segments, quantized, sums, scales, high, totals):
    """totals with a block's products added, as matvec.py adds them: scale * (start + 255 * high sums + low sums).

    segments: of 64 columns, a literal 4 or a number. The others are addresses of the block's parts of the first token;
    those of the next lie behind them.
    """
    rows = len(weights) // 4
    known = getattr(segments, "literal_value", None) == 4

    def codegen(context, builder, signature, args):
        name = signature.args[0].value
        _, weights, segments, quantized, sums, scales, high, totals = args
        w = [[builder.extract_value(weights, 4 * r + s) for s in range(4)] for r in range(rows)]
        acc = [cgutils.alloca_once(builder, Ints.llvm) for _ in range(rows)]

        def products(at: ir.Value, numbers: range) -> None:
            activations = [load(builder, _at(builder, at, 64 * s), Bytes.llvm) for s in numbers]
            for s, own in zip(numbers, activations):
                for r in range(rows):
                    builder.store(emit_dot(builder, name, builder.load(acc[r]), w[r][s], own), acc[r])

        def high_digits(own: ir.Value, places: ir.Value) -> None:
            start = [builder.load(slot) for slot in acc]
            for slot in acc:
                builder.store(ir.Constant(Ints.llvm, [0] * 16), slot)
            for s in range(4):
                here = builder.and_(places, ir.Constant(I64, 0xFFFF << 16 * s))
                with builder.if_then(builder.icmp_unsigned("!=", here, ir.Constant(I64, 0))):
                    products(_at(builder, own, HIGH_BYTES), range(s, s + 1))
            for slot, first in zip(acc, start):
                builder.store(builder.add(first, emit_times_255(builder, builder.load(slot))), slot)

        def behind_first(at: ir.Value, s: int) -> None:
            with builder.if_then(builder.icmp_signed(">", segments, ir.Constant(I64, s))):
                products(at, range(s, s + 1))
                if s < 3:
                    behind_first(at, s + 1)

        for token in range(len(signature.args[-1]) // rows):
            start, own = load(builder, _at(builder, sums, 64 * token), Ints.llvm), _at(builder, high, _HIGH * token)
            for slot in acc:
                builder.store(start, slot)
            places = load(builder, own, I64)
            with builder.if_then(builder.icmp_unsigned("!=", places, ir.Constant(I64, 0)), likely=False):
                high_digits(own, places)
            at = _at(builder, quantized, 256 * token)
            products(at, range(4 if known else 1))
            if not known:
                behind_first(at, 1)
            scale = splat(builder, load(builder, _at(builder, scales, 4 * token), FLOAT), 16)
            for r in range(rows):
                value, i = builder.sitofp(builder.load(acc[r]), Floats.llvm), token * rows + r
                total = [value, scale, builder.extract_value(totals, i)]
                total = _here(builder, call(builder, "llvm.fma.v16f32", Floats.llvm, total))
                totals = builder.insert_value(totals, total, i)
        return totals

    i64 = types.int64
    return totals(isa, weights, segments, i64, i64, i64, i64, totals), codegen


@intrinsic
def finish_tokens(typingctx, totals, factors, shift, out, stride, accumulate):
    """out[t, r] (= or +=) factors[r] * sum_floats(total) + shift[r]; to the bit what scalars give.

    factors: a tuple, one for each row; shift: address of float32 [rows], or 0; out: of the first token's, with `stride`
    bytes between tokens.
    """
    height, count = len(factors), len(totals) // len(factors)
    lanes = 1 << (height * count - 1).bit_length()

    def codegen(context, builder, signature, args):
        totals, factors, shift, out, stride, accumulate = args
        few = ir.VectorType(FLOAT, height)
        order = [i % height for i in range(lanes)]
        places = [builder.add(out, builder.mul(stride, ir.Constant(I64, token))) for token in range(count)]

        own_factors = ir.Constant(few, ir.Undefined)
        for r in range(height):
            factor = builder.extract_value(factors, r)
            own_factors = builder.insert_element(own_factors, factor, ir.Constant(I64, r))

        vectors = [builder.extract_value(totals, min(i, height * count - 1)) for i in range(lanes)]
        scaled = builder.fmul(emit_sums(builder, vectors), shuffle(builder, own_factors, order))
        result = cgutils.alloca_once_value(builder, scaled)
        with builder.if_then(builder.icmp_signed("!=", shift, ir.Constant(I64, 0))):
            builder.store(
                builder.fadd(builder.load(result), shuffle(builder, load(builder, shift, few), order)), result
            )
        for token, place in enumerate(places):
            own = shuffle(builder, builder.load(result), list(range(height * token, height * token + height)))
            value = cgutils.alloca_once_value(builder, own)
            with builder.if_then(accumulate):
                builder.store(builder.fadd(own, load(builder, place, few)), value)
            builder.store(builder.load(value), pointer(builder, place, few), align=1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(totals, factors, i64, i64, i64, types.boolean), codegen
