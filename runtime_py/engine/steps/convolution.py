"""Gated short convolutions with their state."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, T, dataclass, declared
from runtime_py.engine.steps.step import Making, int8_parts, rows, whole


@declared
@dataclass(kw_only=True, eq=False)
class ShortConvolution(Making[T]):
    """out = outer * convolution(inner * values), causal and of each channel alone, and the same as int8 where asked.

    `past` holds inner * values of the last `width` tokens before this call, `present` those after it.
    """

    by_position = True

    inner: T
    values: T
    outer: T
    stride: T  # of all three
    columns: T
    width: T
    kernel: T  # float32 [width, columns]
    bias: T  # 0 for none
    past: T  # float32 [width, columns]
    present: T
    quant: T = NONE
    sums: T = NONE
    scales: T = NONE
    high: T = NONE
    group: T = NONE  # columns of a group whose sums are wanted, too; 0 for none
    starts: T = NONE
    shares: T = NONE

    def constants(self: ShortConvolution[int], arrays: Arrays) -> Iterator[Constant]:
        need(min(self.columns, self.width) >= 1, "a convolution of nothing")
        yield Constant("kernel", self.kernel, 4 * self.width * self.columns)
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.columns)

    def accesses(self: ShortConvolution[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        for name in ("inner", "values", "outer"):
            yield rows(name, READ, getattr(self, name), self.stride, self.columns, case.tokens)
        yield Access("past", READ, self.past, 4 * self.width * self.columns)
        yield Access("present", WRITE, self.present, 4 * self.width * self.columns)
        yield whole("out", self.out, self.columns, case.tokens)
        if self.quant:
            yield from int8_parts(self, WRITE, self.columns, case)
