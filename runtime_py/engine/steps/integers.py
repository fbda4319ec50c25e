"""Activations as integers: int8 with a scale for each block, and razored codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, REAL, T, declared
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
