"""The step table: one row of STEP int64 numbers for each step. plan/ writes it, verify/ proves it, loop/ runs it.

A row is a head (its operation, whether all threads wait for one another before it, whether it only concerns the last
token when asked) and the fields of its kind. A kind is declared in this room, listed here, and has its driver in loop/.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from runtime_py.engine.records.record import Record, T, dataclass, declared
from runtime_py.engine.steps.adapters import AdapterDown, AdapterUp
from runtime_py.engine.steps.attention import Attend, KvAppend, RazorAttend, RazorKvAppend, Rotate
from runtime_py.engine.steps.convolution import ShortConvolution
from runtime_py.engine.steps.delta_net import CausalConvolution, DeltaRule
from runtime_py.engine.steps.elementwise import Activate, Add, Norm, Scale
from runtime_py.engine.steps.experts import Combine, ExpertDense, ExpertGrouped, ExpertMatMul, Route
from runtime_py.engine.steps.integer_attention import IntegerAttend, IntegerKvAppend
from runtime_py.engine.steps.integers import Quantize, Razor, Tender
from runtime_py.engine.steps.lookups import Embed, EmbedDense, EmbedGroups, Reorder
from runtime_py.engine.steps.pages import ChoosePages, PageMeans, SparseAttend
from runtime_py.engine.steps.products import CodeProduct, Dense, Grouped, GroupMatMul, MatMul, RazorMatMul, Sparse
from runtime_py.engine.steps.state_space import StateSpace
from runtime_py.engine.steps.step import Step

KINDS: tuple[type[Step[Any]], ...] = (
    Embed, EmbedDense, Norm, Quantize, MatMul, Grouped, Dense, Activate, Add, KvAppend, Attend, Scale, Reorder,
    Razor, RazorMatMul, RazorKvAppend, RazorAttend, Sparse,
    GroupMatMul, EmbedGroups, Rotate, Route, ExpertMatMul, Combine, ShortConvolution, CausalConvolution, DeltaRule,
    ExpertGrouped, ExpertDense, AdapterDown, AdapterUp, StateSpace, IntegerKvAppend,
    IntegerAttend, Tender, PageMeans, ChoosePages, SparseAttend,
)  # fmt: skip
(
    EMBED, EMBED_DENSE, NORM, QUANTIZE, MATMUL, GROUPED, DENSE, ACTIVATE, ADD, KV_APPEND, ATTEND, SCALE, REORDER,
    RAZOR, RAZOR_MATMUL, RAZOR_KV_APPEND, RAZOR_ATTEND, SPARSE,
    GROUP_MATMUL, EMBED_GROUPS, ROTATE, ROUTE, EXPERT_MATMUL, COMBINE, SHORT_CONVOLUTION, CAUSAL_CONVOLUTION,
    DELTA_RULE, EXPERT_GROUPED, EXPERT_DENSE, ADAPTER_DOWN, ADAPTER_UP, STATE_SPACE, INTEGER_KV_APPEND, INTEGER_ATTEND,
    TENDER, PAGE_MEANS, CHOOSE_PAGES, SPARSE_ATTEND,
) = range(len(KINDS))  # fmt: skip


@declared
@dataclass(kw_only=True, eq=False)
class Head(Record[T]):
    """What every row begins with."""

    operation: T
    barrier: T
    last: T


OPERATION, BARRIER, LAST = range(len(Head.names()))
ARGUMENTS = len(Head.names())
NUMBER = {kind: number for number, kind in enumerate(KINDS)}
NAMES = tuple(kind.__name__ for kind in KINDS)
FIELDS: dict[int, tuple[str, ...]] = {number: kind.names() for number, kind in enumerate(KINDS)}
STEP = 24
assert max(map(len, FIELDS.values())) <= STEP - ARGUMENTS


@dataclasses.dataclass
class StepTable:
    """The finished table, its memory, and everything that must stay alive with it."""

    steps: np.ndarray  # int64 [n, STEP]
    constants: list[np.ndarray]  # arrays that steps only read
    memory: list[np.ndarray]  # in which the buffers lie
    buffers: list[list[tuple[int, int]]]  # of each step: first address and the one behind the last
    externals: dict[str, list[tuple[int, int]]] = dataclasses.field(default_factory=dict)  # cells that the caller sets

    def widths(self) -> list[int | None]:
        """Of the codes that each step multiplies with; None where it does not."""
        kinds = [KINDS[operation] for operation in self.steps[:, OPERATION].tolist()]
        return [
            int(row[ARGUMENTS + kind.names().index("width")]) if issubclass(kind, CodeProduct) else None
            for row, kind in zip(self.steps, kinds)
        ]

    def set(self, name: str, value: int) -> None:
        """Give an External its address (or number)."""
        for row, column in self.externals.get(name, ()):
            self.steps[row, column] = value
