"""Activations as integers: int8 with a scale for each block, and razored codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant, highest, numbers
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, REAL, T, dataclass, declared, field
from runtime_py.engine.steps.step import Step, int8_parts, razored_parts, rows

RAZOR_GROUPS = (16, 32, 64, 128, 256)


@declared
@dataclass(kw_only=True, eq=False)
class Quantize(Step[T]):
    """Integers with one scale for each token and 256 columns; layouts in kernels/quantize.py."""

    source: T
    stride: T
    columns: T
    quant: T
    sums: T
    scales: T
    high: T
    group: T = NONE  # columns of a group whose sums are wanted, too; 0 for none
    starts: T = NONE
    shares: T = NONE

    def accesses(self: Quantize[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield from int8_parts(self, WRITE, self.columns, case)


@declared
@dataclass(kw_only=True, eq=False)
class Razor(Step[T]):
    """Codes with one flag a group and one unit a token; layouts in kernels/razor.py."""

    source: T
    stride: T
    columns: T
    group: T
    unit: T = field(metadata=REAL)  # 0: each token has its own
    form: T
    codes: T
    sums: T
    shifts: T
    units: T

    def accesses(self: Razor[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.group in RAZOR_GROUPS, "razor groups of another length")
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield from razored_parts(self, WRITE, self.columns, case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class Tender(Step[T]):
    """Codes of channels in groups with shifts of their own; layouts as those of a Razor, kernels/tender.py."""

    source: T
    stride: T
    columns: T  # of the source
    places: T
    group: T
    unit: T = field(metadata=REAL)
    limit: T  # largest magnitude of a code
    order: T  # int64 [places], -1 where there is no channel
    middle: T  # float32 [places]
    steps: T  # float32 [runs of `group` places]
    raised: T  # int32 [runs], their shifts
    codes: T
    sums: T
    shifts: T
    units: T

    def constants(self: Tender[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.group in RAZOR_GROUPS and self.places >= 1, "runs of another length")
        need(self.places % self.group == 0 and 1 <= self.limit <= 127, "places that are no runs, or codes of no byte")
        order = numbers(arrays, self.order, np.int64, self.places)
        need(highest(order + 1) <= self.columns, "channels that are not there")
        yield Constant("order", self.order, 8 * self.places)
        yield Constant("middle", self.middle, 4 * self.places)
        yield Constant("steps", self.steps, 4 * (self.places // self.group))
        yield Constant("raised", self.raised, 4 * (self.places // self.group))

    def accesses(self: Tender[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield from razored_parts(self, WRITE, self.places, case.tokens)
