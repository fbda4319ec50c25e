"""One token times rows of uniform p-bit codes, as LLVM IR: by planes of bits, and as an int8 product of the same codes.

Both are int64 sums of codes from zero on (export/contract/operators/bit_planes.py), one for each row, for blocks of
512 columns of which the weights take p * 64 bytes either way:

    planes  a block is its p planes of 64 bytes; activations have q of them
    bytes   codes of 1, 2 or 4 bits beside each other in bytes (3 bits: those of 2 and of 1), activations are 512 bytes

Population counts: VPOPCNTDQ, a byte shuffle with PSADBW (AVX2), CNT with UDOT or UADDLP (NEON), plain shifts.
"""

from __future__ import annotations

from llvmlite import ir

from runtime_py.simd.lowering import _parts, emit_dot
from runtime_py.simd.vectors import I8, I32, I64, Bytes, Ints, call, load

COLUMNS = 512  # of a block
POPULATION = {"avx512": "vpopcntdq", "avx2": "shuffle", "neondot": "cnt", "neon": "cnt", "portable": "scalar"}
_QUADS, _HALF, _SIXTEEN = ir.VectorType(I64, 8), ir.VectorType(I8, 32), ir.VectorType(I8, 16)
_ONES = [bin(value).count("1") for value in range(16)]


class _Product:
    """function(weights, activations, blocks, rows, sums): addresses and counts as int64; sums int64 [rows]."""

    def __init__(self, name: str, isa: str, p: int, q: int) -> None:
        self.isa, self.p, self.q = isa, p, q
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [I64] * 5), name)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def start(self) -> list[ir.Value]:
        """Accumulators at zero."""
        raise NotImplementedError

    def block(self, weights: ir.Value, activations: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        """The accumulators after one block."""
        raise NotImplementedError

    def total(self, sums: list[ir.Value]) -> ir.Value:
        """int64 of the accumulators."""
        raise NotImplementedError

    def activation_bytes(self) -> int:
        """Of one block."""
        raise NotImplementedError

    def build(self) -> ir.Module:
        b, f = self.b, self.function
        weights, activations, blocks, rows, out = f.args
        row, inner, done, end = (f.append_basic_block(n) for n in ("row", "inner", "done", "end"))
        entry, zero = b.block, ir.Constant(I64, 0)
        b.branch(row)
        b.position_at_end(row)
        n, at_row = b.phi(I64), b.phi(I64)
        first = self.start()
        b.branch(inner)
        b.position_at_end(inner)
        k, at, x = b.phi(I64), b.phi(I64), b.phi(I64)
        held = [b.phi(value.type) for value in first]
        made = self.block(at, x, list(held))
        more = [b.add(v, ir.Constant(I64, by)) for v, by in ((k, 1), (at, 64 * self.p), (x, self.activation_bytes()))]
        b.cbranch(b.icmp_unsigned("<", more[0], blocks), inner, done)
        for phi, begin, later in zip((k, at, x, *held), (zero, at_row, activations, *first), (*more, *made)):
            phi.add_incoming(begin, row)
            phi.add_incoming(later, inner)
        b.position_at_end(done)
        place = b.add(out, b.shl(n, ir.Constant(I64, 3)))
        b.store(self.total(made), b.inttoptr(place, I64.as_pointer()))
        following = b.add(n, ir.Constant(I64, 1))
        n.add_incoming(zero, entry)
        n.add_incoming(following, done)
        at_row.add_incoming(weights, entry)
        at_row.add_incoming(more[1], done)
        b.cbranch(b.icmp_unsigned("<", following, rows), row, end)
        b.position_at_end(end)
        b.ret_void()
        return self.module

    def at(self, address: ir.Value, by: int) -> ir.Value:
        return self.b.add(address, ir.Constant(I64, by))


class Planes(_Product):
    """AND and population count of every pair of planes; pairs of one power of two share an accumulator."""

    def activation_bytes(self) -> int:
        return 64 * self.q

    def start(self) -> list[ir.Value]:
        kind = {"vpopcntdq": _QUADS, "shuffle": ir.VectorType(I64, 4), "cnt": ir.VectorType(I32, 4), "scalar": I64}
        return [ir.Constant(kind[POPULATION[self.isa]], None) for _ in range(self.p + self.q - 1)]

    def block(self, weights: ir.Value, activations: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        b, made = self.b, list(sums)
        a = [load(b, self.at(activations, 64 * t), Bytes.llvm) for t in range(self.q)]
        counts: dict[int, ir.Value] = {}
        for s in range(self.p):
            w = load(b, self.at(weights, 64 * s), Bytes.llvm)
            for t in range(self.q):
                both, place = b.and_(w, a[t]), s + t
                found = self._count(both)
                if POPULATION[self.isa] in ("vpopcntdq", "scalar"):
                    made[place] = b.add(made[place], found)
                else:  # bytes of at most 8 * 4 * 4 and 8 * 2 * 4: below 256 for p, q up to 4
                    counts[place] = b.add(counts[place], found) if place in counts else found
        for place, count in counts.items():
            made[place] = self._widened(made[place], count)
        return made

    def _count(self, bits: ir.Value) -> ir.Value:
        """Ones: of eight numbers of 64 bits, of all (scalar), or of bytes that are added up already."""
        b, how = self.b, POPULATION[self.isa]
        if how == "vpopcntdq":
            return call(b, "llvm.ctpop.v8i64", _QUADS, [b.bitcast(bits, _QUADS)])
        if how == "scalar":
            wide, total = b.bitcast(bits, _QUADS), ir.Constant(I64, 0)
            for lane in range(8):
                one = b.extract_element(wide, ir.Constant(I32, lane))
                total = b.add(total, call(b, "llvm.ctpop.i64", I64, [one]))
            return total
        if how == "cnt":
            found = [call(b, "llvm.ctpop.v16i8", _SIXTEEN, [part]) for part in _parts(b, bits, 4)]
            return b.add(b.add(found[0], found[1]), b.add(found[2], found[3]))
        table, low = ir.Constant(_HALF, _ONES * 2), ir.Constant(_HALF, [15] * 32)
        total = None
        for part in _parts(b, bits, 2):
            words = ir.VectorType(I32, 8)
            high = b.bitcast(b.lshr(b.bitcast(part, words), ir.Constant(words, [4] * 8)), _HALF)
            for nibble in (b.and_(part, low), b.and_(high, low)):
                found = call(b, "llvm.x86.avx2.pshuf.b", _HALF, [table, nibble])
                total = found if total is None else b.add(total, found)
        return total

    def _widened(self, acc: ir.Value, count: ir.Value) -> ir.Value:
        """acc plus the sums of bytes."""
        b = self.b
        if POPULATION[self.isa] == "shuffle":
            sums = call(b, "llvm.x86.avx2.psad.bw", acc.type, [count, ir.Constant(_HALF, None)])
            return b.add(acc, sums)
        if self.isa == "neondot":
            ones = ir.Constant(_SIXTEEN, [1] * 16)
            return call(b, "llvm.aarch64.neon.udot.v4i32.v16i8", acc.type, [acc, count, ones])
        pairs = call(b, "llvm.aarch64.neon.uaddlp.v8i16.v16i8", ir.VectorType(ir.IntType(16), 8), [count])
        return b.add(acc, call(b, "llvm.aarch64.neon.uaddlp.v4i32.v8i16", acc.type, [pairs]))

    def total(self, sums: list[ir.Value]) -> ir.Value:
        b, total = self.b, ir.Constant(I64, 0)
        for place, value in enumerate(sums):
            total = b.add(total, b.shl(_sum(b, value), ir.Constant(I64, place)))
        return total


class ByBytes(_Product):
    """The instruction set's product of bytes, codes taken out of their packing by shifts and masks."""

    def activation_bytes(self) -> int:
        return COLUMNS

    def start(self) -> list[ir.Value]:
        return [ir.Constant(Ints.llvm, None)] * 2  # two, so that products do not wait for one another

    def block(self, weights: ir.Value, activations: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        made, at, codes = list(sums), 0, list[ir.Value]()
        for bits in {1: (1,), 2: (2,), 3: (2, 1), 4: (4,)}[self.p]:
            packed = [load(self.b, self.at(weights, at + 64 * i), Bytes.llvm) for i in range(bits)]
            at += 64 * bits
            taken = [self._taken(x, place, bits) for x in packed for place in range(0, 8, bits)]
            codes = taken if not codes else [self.b.or_(low, self._times4(high)) for low, high in zip(codes, taken)]
        for i, w in enumerate(codes):
            a = load(self.b, self.at(activations, 64 * i), Bytes.llvm)
            made[i % 2] = emit_dot(self.b, self.isa, made[i % 2], w, a)
        return made

    def _taken(self, packed: ir.Value, place: int, bits: int) -> ir.Value:
        """(packed >> place) & mask of each byte; shifted in wider numbers, as x86 has no shift of bytes."""
        b = self.b
        wide = b.bitcast(packed, Ints.llvm)
        moved = b.lshr(wide, ir.Constant(Ints.llvm, [place] * 16)) if place else wide
        mask = ir.Constant(Bytes.llvm, [(1 << bits) - 1] * 64)
        return b.and_(b.bitcast(moved, Bytes.llvm), mask)

    def _times4(self, codes: ir.Value) -> ir.Value:
        wide = self.b.bitcast(codes, Ints.llvm)
        return self.b.bitcast(self.b.shl(wide, ir.Constant(Ints.llvm, [2] * 16)), Bytes.llvm)

    def total(self, sums: list[ir.Value]) -> ir.Value:
        return self.b.add(_sum(self.b, sums[0]), _sum(self.b, sums[1]))


def _sum(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """int64 of all lanes of a vector."""
    if isinstance(value.type, ir.IntType):
        return value
    kind = ir.VectorType(I64, value.type.count)
    value = value if value.type.element == I64 else b.sext(value, kind)
    while value.type.count > 1:
        low, high = _parts(b, value, 2)
        value = b.add(low, high)
    return b.extract_element(value, ir.Constant(I32, 0))
