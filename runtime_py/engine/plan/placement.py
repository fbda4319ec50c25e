"""From the list of planned steps to memory: buffers that live only as long as they are read, barriers, addresses.

The handlers say what is computed from what; here every buffer gets an address in one arena, a step that depends on one
since the last barrier gets a barrier before it, and the table of int64 numbers is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime_py.engine.steps.step import Step
from runtime_py.engine.steps.table import ARGUMENTS, NUMBER, STEP, Head, StepTable
from runtime_py.system.guard_pages import ALIGN, aligned_bytes, checking


@dataclass(eq=False)
class Buffer:
    """Memory for up to `chunk` tokens, not yet placed."""

    size: int  # bytes
    offset: int = -1  # in the arena, once placed


@dataclass(frozen=True)
class Place:
    """An address inside a buffer."""

    buffer: Buffer
    offset: int = 0


@dataclass(frozen=True)
class External:
    """An address (or number) known only at run time: set by StepTable.set()."""

    name: str


Argument = int | float | Place | External


@dataclass(eq=False)
class PlannedStep:
    """One step before it becomes numbers. reads and writes are the buffers it touches."""

    step: Step[Argument]
    reads: list[Buffer]
    writes: list[Buffer]
    barrier: bool = False
    last: bool = False


def finish(steps: list[PlannedStep], keep: list[np.ndarray]) -> StepTable:
    """Place the buffers, set the barriers and write the table."""
    _set_barriers(steps)
    if checking():
        memory, base = _own_memory(steps), 0
    else:
        memory = [aligned_bytes(_place_buffers(steps))]
        base = memory[0].ctypes.data
    rows = np.zeros((len(steps), STEP), np.int64)
    buffers = [
        [(base + b.offset, base + b.offset + b.size) for b in {*step.reads, *step.writes} if b.size] for step in steps
    ]
    table = StepTable(rows, keep, memory, buffers)
    for row, planned in enumerate(steps):
        head = Head(operation=NUMBER[type(planned.step)], barrier=int(planned.barrier), last=int(planned.last))
        head.write(rows[row], lambda place, number: number)

        def number(place: int, value: Argument, row: int = row) -> int | float:
            if isinstance(value, Place):
                return base + value.buffer.offset + value.offset
            if isinstance(value, External):
                table.externals.setdefault(value.name, []).append((row, ARGUMENTS + place))
                return 0
            return value

        planned.step.write(rows[row, ARGUMENTS:], number)
    return table


def _set_barriers(steps: list[PlannedStep]) -> None:
    """A step waits when a step since the last barrier wrote what it touches, or read what it writes."""
    read: set[int] = set()
    written: set[int] = set()
    for step in steps:
        reads, writes = {id(b) for b in step.reads}, {id(b) for b in step.writes}
        if written & (reads | writes) or read & writes:
            step.barrier = True
            read, written = set(), set()
        read |= reads
        written |= writes


def _place_buffers(steps: list[PlannedStep]) -> int:
    """First-fit over the steps; a buffer's memory returns only at a barrier, when nobody can still be using it."""
    last_use: dict[int, int] = {}
    for i, step in enumerate(steps):
        for buffer in (*step.reads, *step.writes):
            last_use[id(buffer)] = i
    live: list[Buffer] = []
    top, group_start = 0, 0
    for i, step in enumerate(steps):
        if step.barrier:
            group_start = i
            live = [b for b in live if last_use[id(b)] >= group_start]
        for buffer in (*step.reads, *step.writes):
            if buffer.offset < 0:
                buffer.offset = _gap(live, buffer.size)
                live.append(buffer)
                top = max(top, buffer.offset + buffer.size)
    return top


def _own_memory(steps: list[PlannedStep]) -> list[np.ndarray]:
    """Give every buffer memory of its own behind a guard page, which is returned; offsets become addresses."""
    owned = []
    for step in steps:
        for buffer in (*step.reads, *step.writes):
            if buffer.offset < 0:
                memory = aligned_bytes(buffer.size)
                owned.append(memory)
                buffer.offset = memory.ctypes.data
    return owned


def _gap(live: list[Buffer], size: int) -> int:
    at = 0
    for buffer in sorted(live, key=lambda b: b.offset):
        if at + size <= buffer.offset:
            return at
        at = max(at, -(-(buffer.offset + buffer.size) // ALIGN) * ALIGN)
    return at
