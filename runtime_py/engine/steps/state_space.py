"""Selective state spaces, with their state."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.layout.recurrent import SPACE_SCRATCH as SCRATCH
from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import REAL, T, dataclass, declared, field
from runtime_py.engine.steps.delta_net import blocks
from runtime_py.engine.steps.step import Making, rows, whole


@declared
@dataclass(kw_only=True, eq=False)
class StateSpace(Making[T]):
    """SelectiveStateSpace (export/contract/operators/state_space.py) over rows of values, B (written) and C (read)."""

    by_position = True

    value: T
    written: T
    read: T
    stride: T  # of all three
    step: T
    step_stride: T
    rate: T  # float32 [heads]
    bias: T
    skip: T
    heads: T
    groups: T
    state_size: T
    head_dim: T
    least: T = field(metadata=REAL)
    most: T = field(metadata=REAL)
    past: T  # float32 [heads, blocks, state_size, COLUMNS]
    present: T

    def constants(self: StateSpace[int], arrays: Arrays) -> Iterator[Constant]:
        need(min(self.heads, self.groups, self.state_size, self.head_dim) >= 1, "a state space of nothing")
        need(self.heads % self.groups == 0, "heads that are not shared evenly")
        for name in ("rate", "bias", "skip"):
            yield Constant(name, getattr(self, name), 4 * self.heads)

    def accesses(self: StateSpace[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        values, states = self.heads * self.head_dim, self.groups * self.state_size
        for name, columns in (("value", values), ("written", states), ("read", states)):
            yield rows(name, READ, getattr(self, name), self.stride, columns, case.tokens)
        yield rows("step", READ, self.step, self.step_stride, self.heads, case.tokens)
        held = 4 * self.heads * blocks(self.head_dim) * self.state_size * COLUMNS
        yield Access("past", READ, self.past, held)
        yield Access("present", WRITE, self.present, held)
        yield whole("out", self.out, values, case.tokens)

    def scratch(self: StateSpace[int], arrays: Arrays) -> int:
        return SCRATCH
