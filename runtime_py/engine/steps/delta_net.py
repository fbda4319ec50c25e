"""Gated delta nets: the convolution before the delta rule, and the rule, each with its state."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.layout.functions import CLAMPED, KINDS
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.layout.recurrent import DELTA_SCRATCH as SCRATCH
from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import REAL, T, dataclass, declared, field
from runtime_py.engine.steps.step import Making, rows, whole

PLAIN = -1  # a convolution without an activation


@declared
@dataclass(kw_only=True, eq=False)
class CausalConvolution(Making[T]):
    """out = activation(convolution(source) + bias), causal and of each channel alone.

    `past` holds the last `width` - 1 rows before this call, `present` those after it.
    """

    by_position = True

    source: T
    stride: T
    columns: T
    width: T
    kernel: T  # float32 [width, columns]
    bias: T  # float32 [columns]; 0 for none
    kind: T  # kernels/elementwise.py, or PLAIN
    past: T  # float32 [width - 1, columns]
    present: T

    def constants(self: CausalConvolution[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.columns >= 1 and self.width >= 2, "a convolution of nothing")
        need(PLAIN <= self.kind < KINDS and self.kind != CLAMPED, "an unknown activation")
        yield Constant("kernel", self.kernel, 4 * self.width * self.columns)
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.columns)

    def accesses(self: CausalConvolution[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield Access("past", READ, self.past, 4 * (self.width - 1) * self.columns)
        yield Access("present", WRITE, self.present, 4 * (self.width - 1) * self.columns)
        yield whole("out", self.out, self.columns, case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class DeltaRule(Making[T]):
    """GatedDeltaRule (export/contract/operators/delta_rule.py) over rows of queries, keys and values."""

    by_position = True

    query: T
    key: T
    value: T
    stride: T  # of all three
    decay: T
    decay_stride: T
    beta: T
    beta_stride: T
    rate: T  # float32 [value_heads]
    bias: T
    key_heads: T
    value_heads: T
    key_dim: T
    value_dim: T
    epsilon: T = field(metadata=REAL)
    past: T  # float32 [value_heads, blocks, key_dim, COLUMNS]
    present: T

    def constants(self: DeltaRule[int], arrays: Arrays) -> Iterator[Constant]:
        need(min(self.key_heads, self.value_heads, self.key_dim, self.value_dim) >= 1, "a rule of nothing")
        need(self.value_heads % self.key_heads == 0, "heads that are not shared evenly")
        yield Constant("rate", self.rate, 4 * self.value_heads)
        yield Constant("bias", self.bias, 4 * self.value_heads)

    def accesses(self: DeltaRule[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        for name, columns in (("query", keys), ("key", keys), ("value", values)):
            yield rows(name, READ, getattr(self, name), self.stride, columns, case.tokens)
        yield rows("decay", READ, self.decay, self.decay_stride, self.value_heads, case.tokens)
        yield rows("beta", READ, self.beta, self.beta_stride, self.value_heads, case.tokens)
        state = 4 * self.value_heads * blocks(self.value_dim) * self.key_dim * COLUMNS
        yield Access("past", READ, self.past, state)
        yield Access("present", WRITE, self.present, state)
        yield whole("out", self.out, values, case.tokens)

    def scratch(self: DeltaRule[int], arrays: Arrays) -> int:
        return SCRATCH


def blocks(value_dim: int) -> int:
    """Blocks of columns that a head's state has."""
    return -(-value_dim // COLUMNS)
