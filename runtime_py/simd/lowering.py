"""The two operations each instruction set does in its own way: table lookup and integer dot product.

lookup16(table, index): byte i is table[index[i] mod 16]; the table repeats its 16 bytes four times.
lookup64(table, index): byte i is table[index[i] mod 64].
dot(acc, weights, activations): lane l adds the four products of bytes 4l..4l+3, exactly. Weights are int8 plus
WEIGHT_OFFSET (isa.py), activations int8 in -127..127.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from runtime_py.simd.vectors import I8, I16, I32, Bytes, Ints, call, shuffle

_SETS_256 = ("avx2", "avx2vnni")
_NEON_DOT = ("neondot", "neoni8mm")
_NEON = ("neon", *_NEON_DOT)


def _parts(builder: ir.IRBuilder, value: ir.Value, count: int) -> list[ir.Value]:
    width = value.type.count // count
    return [shuffle(builder, value, list(range(i * width, (i + 1) * width))) for i in range(count)]


def _join(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    while len(parts) > 1:
        width = parts[0].type.count
        parts = [shuffle(builder, a, list(range(2 * width)), b) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def _bytes(value: int, lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I8, lanes), [value] * lanes)


def _by_shuffle(builder: ir.IRBuilder, isa: str, table: ir.Value, index: ir.Value) -> ir.Value:
    """index already within 0..15; table repeats every 16 bytes."""
    if isa == "avx512":
        return call(builder, "llvm.x86.avx512.pshuf.b.512", Bytes.llvm, [table, index])
    name, count = ("llvm.x86.avx2.pshuf.b", 2) if isa in _SETS_256 else ("llvm.aarch64.neon.tbl1.v16i8", 4)
    tables, indices = _parts(builder, table, count), _parts(builder, index, count)
    return _join(builder, [call(builder, name, t.type, [t, i]) for t, i in zip(tables, indices)])


def _by_memory(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """Portable: the table on the stack, one load a byte."""
    slot = cgutils.alloca_once(builder, Bytes.llvm)
    builder.store(table, slot)
    base = builder.bitcast(slot, I8.as_pointer())
    out = ir.Constant(Bytes.llvm, ir.Undefined)
    for lane in range(64):
        at = ir.Constant(I32, lane)
        position = builder.zext(builder.extract_element(index, at), I32)
        out = builder.insert_element(out, builder.load(builder.gep(base, [position])), at)
    return out


def emit_lookup16(builder: ir.IRBuilder, isa: str, table: ir.Value, index: ir.Value) -> ir.Value:
    if isa == "avx512vbmi":
        return call(builder, "llvm.x86.avx512.permvar.qi.512", Bytes.llvm, [table, index])
    index = builder.and_(index, _bytes(15, 64))
    return _by_memory(builder, table, index) if isa == "portable" else _by_shuffle(builder, isa, table, index)


def emit_lookup64(builder: ir.IRBuilder, isa: str, table: ir.Value, index: ir.Value) -> ir.Value:
    if isa == "avx512vbmi":
        return call(builder, "llvm.x86.avx512.permvar.qi.512", Bytes.llvm, [table, index])
    index = builder.and_(index, _bytes(63, 64))
    if isa == "portable":
        return _by_memory(builder, table, index)
    quarters = _parts(builder, table, 4)
    if isa in _NEON:
        found = [
            call(builder, "llvm.aarch64.neon.tbl4.v16i8", i.type, [*quarters, i]) for i in _parts(builder, index, 4)
        ]
        return _join(builder, found)
    low = builder.and_(index, _bytes(15, 64))
    found = [_by_shuffle(builder, isa, _join(builder, [q] * 4), low) for q in quarters]
    high_bit = builder.icmp_unsigned(">", index, _bytes(31, 64))
    low_bit = builder.icmp_unsigned("!=", builder.and_(index, _bytes(16, 64)), _bytes(0, 64))
    return builder.select(
        high_bit, builder.select(low_bit, found[3], found[2]), builder.select(low_bit, found[1], found[0])
    )


def emit_lookup128(builder: ir.IRBuilder, low: ir.Value, high: ir.Value, index: ir.Value) -> ir.Value:
    """Byte i is entry index[i] mod 128 of two vectors; avx512vbmi alone has this."""
    return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", Bytes.llvm, [low, index, high])


def _dot_256(builder: ir.IRBuilder, acc: ir.Value, weights: ir.Value, activations: ir.Value) -> ir.Value:
    """Plain AVX2: |w| x sign(a, w) keeps every pair of products within int16 (2 * 128 * 127 < 2**15)."""
    bytes_256, words, ints = weights.type, ir.VectorType(I16, 16), acc.type
    size = builder.select(builder.icmp_signed("<", weights, _bytes(0, 32)), builder.neg(weights), weights)
    signed = call(builder, "llvm.x86.avx2.psign.b", bytes_256, [activations, weights])
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", words, [size, signed])
    ones = ir.Constant(words, [1] * 16)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", ints, [pairs, ones]))


def _dot_neon(builder: ir.IRBuilder, acc: ir.Value, weights: ir.Value, activations: ir.Value) -> ir.Value:
    """Plain NEON: widening multiply, then add neighbours twice."""
    words, ints = ir.VectorType(I16, 8), acc.type
    sums = []
    for half in range(2):
        lanes = list(range(8 * half, 8 * half + 8))
        w, a = (builder.sext(shuffle(builder, v, lanes), words) for v in (weights, activations))
        sums.append(call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", ints, [builder.mul(w, a)]))
    return builder.add(acc, call(builder, "llvm.aarch64.neon.addp.v4i32", ints, sums))


def _dot_portable(builder: ir.IRBuilder, acc: ir.Value, weights: ir.Value, activations: ir.Value) -> ir.Value:
    wide = ir.VectorType(I32, 64)
    products = builder.mul(builder.sext(weights, wide), builder.sext(activations, wide))
    for k in range(4):
        acc = builder.add(acc, shuffle(builder, products, list(range(k, 64, 4))))
    return acc


def emit_dot(builder: ir.IRBuilder, isa: str, acc: ir.Value, weights: ir.Value, activations: ir.Value) -> ir.Value:
    if isa.startswith("avx512"):
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", Ints.llvm, [acc, weights, activations])
    if isa == "portable":
        return _dot_portable(builder, acc, weights, activations)
    count = 2 if isa in _SETS_256 else 4
    out = []
    for a, w, x in zip(*(_parts(builder, v, count) for v in (acc, weights, activations))):
        if isa == "avx2vnni":
            out.append(call(builder, "llvm.x86.avx512.vpdpbusd.256", a.type, [a, w, x]))
        elif isa == "avx2":
            out.append(_dot_256(builder, a, w, x))
        elif isa in _NEON_DOT:
            # Weights last: there the instruction takes four bytes that repeat from where they lie.
            out.append(call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", a.type, [a, x, w]))
        else:
            out.append(_dot_neon(builder, a, w, x))
    return _join(builder, out)


def _pair(emit):
    @intrinsic
    def operation(typingctx, isa, table, index):
        def codegen(context, builder, signature, args):
            return emit(builder, signature.args[0].value, args[1], args[2])

        return Bytes(isa, Bytes, Bytes), codegen

    return operation


lookup16 = _pair(emit_lookup16)
lookup64 = _pair(emit_lookup64)


@intrinsic
def dot(typingctx, isa, acc, weights, activations):
    """acc (Ints) plus the products of four neighbouring bytes in each lane."""

    def codegen(context, builder, signature, args):
        return emit_dot(builder, signature.args[0].value, args[1], args[2], args[3])

    return Ints(isa, Ints, Bytes, Bytes), codegen
