"""Proves, before the first run, that no step of a finished table can touch memory that is not its own.

The table comes from a graph that may be hostile, and the kernels check nothing. So nobody runs a table that did not
pass here. What is read is the table, the buffers that each step names, the kept arrays and what the caller promises of
the addresses it sets (`Promise`): never the planner's reasons. For every kind of call (one token, a whole chunk, a
chunk of which only the last logits are asked for) all steps are gone through in order, and for each of their accesses
(steps/):

- an address is set, and the bytes lie in one buffer that the step names, in memory that the caller promised, or at the
  start of a kept array;
- what is read was written before, by this call, for as many tokens, and not overwritten since;
- what is written overlaps nothing else that the step touches, nor, without a barrier in between,
  anything that an earlier step touches;
- the results of the call are written in full;
- indices are limited by the smallest table that they pick from.

Anything else raises Unplannable, and the interpreter runs the graph or refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime_py.engine.records.claims import READ, WRITE, Access, Case
from runtime_py.engine.records.errors import need
from runtime_py.engine.steps import table as op
from runtime_py.engine.steps.step import Step
from runtime_py.engine.steps.table import StepTable

_APART = 1 << 70  # promised memory gets addresses of its own, beyond any real one
_INDICES = ("input_ids", "position_ids", "token_type_ids")


@dataclass(eq=False)
class Promise:
    """Memory that the caller will have behind an External: at least `size` bytes in each case, the result exactly."""

    size: Callable[[Case], int]
    ready: bool = True  # holds something before the first step
    result: bool = False


@dataclass
class Promises:
    """What the caller sets: memory and numbers, by the External's name. Names that share memory share the Promise."""

    memory: Mapping[str, Promise]
    numbers: Mapping[str, Callable[[Case], int]] = field(default_factory=dict)


def verify(plan: StepTable, promises: Promises, cases: Sequence[Case], scratch_bytes: int) -> dict[str, int]:
    """How many indices each of input_ids, position_ids and token_type_ids may hold, where a lookup reads them.

    cases: all kinds of calls. scratch_bytes: what each thread has. Raises Unplannable where something is not proven.
    """
    walk = _Walk(plan, promises, scratch_bytes)
    for number, case in enumerate(cases):
        walk.pass_through(case, first=number == 0)
    return walk.limits


class _Walk:
    def __init__(self, plan: StepTable, promises: Promises, scratch_bytes: int) -> None:
        self._plan, self._promises, self._scratch = plan, promises, scratch_bytes
        self.limits: dict[str, int] = {}
        self._arrays: dict[int, np.ndarray] = {}
        for array in plan.constants:
            known = self._arrays.get(array.ctypes.data)
            if array.nbytes and (known is None or array.nbytes < known.nbytes):
                self._arrays[array.ctypes.data] = array
        shared = {id(promise): promise for promise in promises.memory.values()}
        places = {identity: _APART * (i + 1) for i, identity in enumerate(shared)}
        self._bases = {name: places[id(promise)] for name, promise in promises.memory.items()}
        self._promised = list(shared.values())
        externals = [(row, column, name) for name, cells in plan.externals.items() for row, column in cells]
        for _, _, name in externals:
            need(name in self._bases or name in promises.numbers, f"nobody sets {name}")
        self._externals = externals
        owned = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in plan.memory]
        for low, high in {span for spans in plan.buffers for span in spans}:
            need(any(start <= low and high <= end for start, end in owned), "a buffer without memory")

    def pass_through(self, case: Case, first: bool) -> None:
        """All steps in the order of the table."""
        table = self._plan.steps.tolist()
        for row, column, name in self._externals:
            base = self._bases.get(name)
            table[row][column] = self._promises.numbers[name](case) if base is None else base
        sizes = [promise.size(case) for promise in self._promised]
        self._spans = [(_APART * (i + 1), _APART * (i + 1) + size) for i, size in enumerate(sizes)]
        # What holds something, by memory (-1: the buffers): its bytes, and of how many tokens (0: whatever a call has).
        self._written: dict[int, list[tuple[int, int, int]]] = {-1: []}
        for i, (span, promise) in enumerate(zip(self._spans, self._promised)):
            self._written[i] = [(*span, 0)] if promise.ready else []
        self._group: list[Access] = []  # what was touched since the last barrier
        for number, row in enumerate(table):
            try:
                self._step(number, row, case, first)
            except (KeyError, ValueError, IndexError, ArithmeticError):
                need(False, f"step {number} cannot be understood")
        for i, (span, promise) in enumerate(zip(self._spans, self._promised)):
            whole = [(low, high) for low, high, _ in self._written[i]] == [span]
            need(whole or not promise.result, "a result that is not written in full")

    def _step(self, number: int, row: list[int], case: Case, first: bool) -> None:
        operation = row[op.OPERATION]
        need(0 <= operation < len(op.KINDS), f"step {number} is of no known operation")
        kind = op.KINDS[operation]
        where, step = f"step {number}, {kind.__name__}", kind.of(row[op.ARGUMENTS :])
        if first:
            self._check_constants(step, where)
            need(step.scratch(self._arrays) <= self._scratch, f"{where}: not enough scratch memory")
        tokens = case.tokens  # of what it reads
        if row[op.LAST] and case.last_only:
            need(not kind.by_position, f"{where} depends on positions and is made for the last token only")
            case = case._replace(tokens=1)
            tokens = tokens if kind.keeps_rows else 1
        if row[op.BARRIER]:
            self._group = []
        accesses = list(step.accesses(case, self._arrays))
        if tokens != case.tokens:  # the norm picks the last token
            source = accesses[0]
            accesses[0] = source._replace(address=source.address + (tokens - 1) * source.stride)
        touched = [access for access in accesses if self._reach(access, tokens, number, where)]
        for i, access in enumerate(touched):
            if access.kind != READ:
                for other in (*touched[:i], *touched[i + 1 :]):
                    need(not _overlap(access, other), f"{where}: {access.name} overlaps {other.name}")
            for other in self._group:
                clash = access.kind != READ or other.kind != READ
                need(not clash or not _overlap(access, other), f"{where}: {access.name} disturbs an earlier step")
        for access in touched:
            if access.kind == WRITE:
                self._write(*_span(access), case.tokens)
        self._group += touched

    def _check_constants(self, step: Step[int], where: str) -> None:
        try:
            for constant in step.constants(self._arrays):
                found = self._arrays.get(constant.address)
                need(found is not None and 0 < constant.size <= found.nbytes, f"{constant.name} lies outside its array")
        except Exception as error:
            need(False, f"{where}: {error}")
        looked_up = step.lookup(self._arrays)
        if looked_up is not None:
            self._limit(*looked_up, where)

    def _limit(self, ids: int, rows: int, where: str) -> None:
        name = next((n for n in _INDICES if self._bases.get(n) == ids), None)
        need(name is not None, f"{where}: indices of unknown range")
        assert name is not None
        self.limits[name] = min(self.limits.get(name, rows), rows)

    def _reach(self, access: Access, tokens: int, number: int, where: str) -> bool:
        """Whether it goes to memory that steps write; False for constants. Raises Unplannable where it is not held."""
        low, high = _span(access)
        end = high + access.slack
        promised = low // _APART - 1
        if promised >= 0:
            need(promised < len(self._spans) and end <= self._spans[promised][1], f"{where}: {access.name} is too long")
        elif not any(start <= low and end <= stop for start, stop in self._plan.buffers[number]):
            array = self._arrays.get(low)
            known = access.kind == READ and array is not None and end - low <= array.nbytes
            need(known, f"{where}: {access.name} lies outside its memory")
            return False
        if access.kind != WRITE:
            held = any(start <= low and high <= stop and t in (0, tokens) for start, stop, t in self._written[promised])
            need(held, f"{where}: {access.name} reads what no step has written")
        return True

    def _write(self, low: int, high: int, tokens: int) -> None:
        """From now on this holds the step's result, and what overlapped it holds nothing."""
        memory = low // _APART - 1
        kept = [span for span in self._written[memory] if span[1] <= low or high <= span[0]]
        self._written[memory] = [*kept, (low, high, tokens)]


def _span(access: Access) -> tuple[int, int]:
    return access.address, access.address + (access.rows - 1) * access.stride + access.size


def _overlap(one: Access, other: Access) -> bool:
    """Whether two accesses share a byte: parts of the same rows do not where their columns differ."""
    (low, high), (start, stop) = _span(one), _span(other)
    if high <= start or stop <= low:
        return False
    if one.stride != other.stride or one.stride == 0:
        return True
    apart = (start - low) % one.stride
    return not (one.size <= apart and apart + other.size <= one.stride)
