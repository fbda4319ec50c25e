"""From the list of planned steps to memory: buffers that live only as long as they are read, meeting points, addresses.

The planner (planner.py) says what is computed from what; here every buffer gets an address in one arena, a step that
depends on one since the last meeting gets a meeting before it, and the table of int64 numbers is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runtime_py.engine.kernels.matrix import padded
from runtime_py.engine.steps.table import ARGUMENTS, FIELDS, LAST, MEET, OPERATION, STEP
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
    """An address known only at run time: set by Plan.set()."""

    name: str


Argument = int | float | Place | External


@dataclass
class Step:
    """One step before it becomes numbers. reads and writes are the buffers it touches."""

    operation: int
    arguments: dict[str, Argument]
    reads: list[Buffer]
    writes: list[Buffer]
    meet: bool = False
    last: bool = False


@dataclass
class Plan:
    """The finished table, its memory, and everything that must stay alive with it."""

    steps: np.ndarray  # int64 [n, STEP]
    constants: list[np.ndarray]  # arrays that steps only read
    memory: list[np.ndarray]  # in which the buffers lie
    buffers: list[list[tuple[int, int]]]  # of each step: first address and the one behind the last
    externals: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def set(self, name: str, value: int) -> None:
        """Give an External its address (or number)."""
        for row, column in self.externals.get(name, ()):
            self.steps[row, column] = value


@dataclass(frozen=True)
class Quantized:
    """Places of a value as int8: layouts in quantize.py."""

    buffer: Buffer
    sums: int
    scales: int

    @staticmethod
    def of(columns: int, chunk: int) -> Quantized:
        tokens, blocks = -(-chunk // 32) * 32, -(-columns // 256)
        data, sums = tokens * padded(columns), tokens * blocks * 4
        return Quantized(Buffer(data + 2 * sums), data, data + sums)

    def arguments(self) -> dict[str, Argument]:
        return {
            "quant": Place(self.buffer),
            "sums": Place(self.buffer, self.sums),
            "scales": Place(self.buffer, self.scales),
        }


def finish(steps: list[Step], keep: list[np.ndarray]) -> Plan:
    """Place the buffers, set the meeting points and write the table."""
    _set_meetings(steps)
    if checking():
        memory, base = _fence_buffers(steps), 0
    else:
        memory = [aligned_bytes(_place_buffers(steps))]
        base = memory[0].ctypes.data
    table = np.zeros((len(steps), STEP), np.int64)
    buffers = [
        [(base + b.offset, base + b.offset + b.size) for b in {*step.reads, *step.writes} if b.size] for step in steps
    ]
    plan = Plan(table, keep, memory, buffers)
    for row, step in enumerate(steps):
        table[row, OPERATION], table[row, MEET], table[row, LAST] = step.operation, step.meet, step.last
        names = FIELDS[step.operation]
        if set(step.arguments) - set(names):
            raise ValueError(
                f"step {row} has arguments its operation does not know: {set(step.arguments) - set(names)}"
            )
        for column, name in enumerate(names, start=ARGUMENTS):
            value = step.arguments.get(name, 0)
            if isinstance(value, Place):
                table[row, column] = base + value.buffer.offset + value.offset
            elif isinstance(value, External):
                plan.externals.setdefault(value.name, []).append((row, column))
            elif isinstance(value, float):
                table[row, column] = int(np.float32(value).view(np.int32))
            else:
                table[row, column] = value
    return plan


def _set_meetings(steps: list[Step]) -> None:
    """A step waits when a step since the last meeting wrote what it touches, or read what it writes."""
    read: set[int] = set()
    written: set[int] = set()
    for step in steps:
        reads, writes = {id(b) for b in step.reads}, {id(b) for b in step.writes}
        if written & (reads | writes) or read & writes:
            step.meet = True
            read, written = set(), set()
        read |= reads
        written |= writes


def _place_buffers(steps: list[Step]) -> int:
    """First-fit over the steps; a buffer's memory returns only at a meeting, when nobody can still be using it."""
    last_use: dict[int, int] = {}
    for i, step in enumerate(steps):
        for buffer in (*step.reads, *step.writes):
            last_use[id(buffer)] = i
    live: list[Buffer] = []
    top, group_start = 0, 0
    for i, step in enumerate(steps):
        if step.meet:
            group_start = i
            live = [b for b in live if last_use[id(b)] >= group_start]
        for buffer in (*step.reads, *step.writes):
            if buffer.offset < 0:
                buffer.offset = _gap(live, buffer.size)
                live.append(buffer)
                top = max(top, buffer.offset + buffer.size)
    return top


def _fence_buffers(steps: list[Step]) -> list[np.ndarray]:
    """Give every buffer memory of its own, which is returned; offsets become addresses."""
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
