"""Norms, activations with their gates, factors and sums."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.layout.functions import CLAMPED, KINDS
from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, REAL, T, dataclass, declared, field
from runtime_py.engine.steps.step import Making, int8_parts, rows, whole

RMS, LAYER = 0, 1  # kinds of Norm


@declared
@dataclass(kw_only=True, eq=False)
class Norm(Making[T]):
    """RMS or layer norm of `heads` parts of each row, and what it makes as int8 where `quant` is set."""

    keeps_rows = True

    kind: T
    source: T
    stride: T
    scale: T
    bias: T  # 0 for none
    epsilon: T = field(metadata=REAL)
    columns: T  # of one head
    heads: T
    scale_stride: T = NONE  # floats from the scales of a head to those of the next; 0 where all have the same
    quant: T = NONE
    sums: T = NONE
    scales: T = NONE
    high: T = NONE
    group: T = NONE  # columns of a group whose sums are wanted, too; 0 for none
    starts: T = NONE
    shares: T = NONE

    def constants(self: Norm[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.kind in (RMS, LAYER) and min(self.columns, self.heads) >= 1, "a norm of nothing")
        need(self.quant == 0 or self.heads == 1, "a norm of heads that is quantized")
        need(self.scale_stride >= 0, "scales that go backward")
        yield Constant("scale", self.scale, 4 * (self.scale_stride * (self.heads - 1) + self.columns))
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.columns)

    def accesses(self: Norm[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns * self.heads, case.tokens)
        yield whole("out", self.out, self.columns * self.heads, case.tokens)
        if self.quant:
            yield from int8_parts(self, WRITE, self.columns, case)


@declared
@dataclass(kw_only=True, eq=False)
class Activate(Making[T]):
    """out = activation(source) * gated, or a clamped gate, and what it makes as int8 where `quant` is set."""

    kind: T  # kernels/elementwise.py
    source: T
    stride: T
    gated: T  # 0 for no gate
    gated_stride: T
    columns: T
    alpha: T = field(default=NONE, metadata=REAL)  # of a clamped gate
    limit: T = field(default=NONE, metadata=REAL)
    quant: T = NONE
    sums: T = NONE
    scales: T = NONE
    high: T = NONE
    group: T = NONE  # columns of a group whose sums are wanted, too; 0 for none
    starts: T = NONE
    shares: T = NONE

    def accesses(self: Activate[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(0 <= self.kind < KINDS, "an unknown activation")
        need(self.kind != CLAMPED or self.gated != 0, "a clamped gate of nothing")
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        if self.gated:
            yield rows("gated", READ, self.gated, self.gated_stride, self.columns, case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)
        if self.quant:
            yield from int8_parts(self, WRITE, self.columns, case)


@declared
@dataclass(kw_only=True, eq=False)
class Scale(Making[T]):
    """out = source * factor."""

    source: T
    stride: T
    factor: T = field(metadata=REAL)
    columns: T

    def accesses(self: Scale[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class Add(Making[T]):
    """out = a + b; a stride of 0 adds the same row of b to every token."""

    a: T
    a_stride: T
    b: T
    b_stride: T
    columns: T

    def accesses(self: Add[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("a", READ, self.a, self.a_stride, self.columns, case.tokens)
        yield rows("b", READ, self.b, self.b_stride, self.columns, case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)
