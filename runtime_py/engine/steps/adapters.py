"""The two halves of an adapter's term beside a product or a norm. Which adapter, each token's text says.

Where a text has no adapter, or that has no term here, the first half writes nothing and the second reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.records.claims import READ, UPDATE, WRITE, Access, Arrays, Case
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import T, dataclass, declared
from runtime_py.engine.records.term import TERM
from runtime_py.engine.steps.step import Step, rows


@dataclass(kw_only=True, eq=False)
class Half(Step[T]):
    """terms: address of the records of the adapter at work, one for each slot (records/term.py)."""

    terms: T
    slot: T
    most: T  # largest rank of any adapter: floats from one token's products to the next

    def term(self: Half[int]) -> Access:
        """The record that is read."""
        need(self.slot >= 0 and self.most >= 1, "a slot that is none")
        return Access("terms", READ, self.terms + 8 * TERM * self.slot, 8 * TERM)


@declared
@dataclass(kw_only=True, eq=False)
class AdapterDown(Half[T]):
    """out [tokens, rank] = f(source [tokens, columns] @ a^T + a's bias)."""

    source: T
    stride: T
    columns: T
    out: T

    def accesses(self: AdapterDown[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield Access("out", WRITE, self.out, 4 * self.most * case.tokens)
        yield self.term()


@declared
@dataclass(kw_only=True, eq=False)
class AdapterUp(Half[T]):
    """out [tokens, rows] += source [tokens, rank] @ b + b's bias."""

    source: T
    rows: T
    out: T

    def accesses(self: AdapterUp[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.rows >= 1, "a term without rows")
        yield Access("source", READ, self.source, 4 * self.most * case.tokens)
        yield Access("out", UPDATE, self.out, 4 * self.rows * case.tokens)
        yield self.term()
