"""Many tasks on one backbone (adapter-ALBERT, arXiv 2303.16100): what a day of mixed requests costs.

The backbone never changes and lies in RRAM; what a task has of its own, low-rank factors and a head, lies in SRAM
and is all that a switch rewrites. Beside it, the same day with a whole model for each task, reloaded at every switch
into SRAM or into RRAM. Between requests logic and DRAM are switched off; memory that forgets keeps leaking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from export.contract.errors import InputError
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.stream import stored_bytes
from targets import Target

SECONDS = 86_400.0  # of the day
_ADAPTER_BITS = 8  # of factors and heads, as the backbone
_MOST = 10**9  # requests, ranks and labels


@dataclass(frozen=True)
class Task:
    """One task: how often it is asked for in the day, and what it has of its own."""

    name: str
    requests: int
    rank: int
    matrices: tuple[str, ...]  # ends of the names of products that get low-rank factors: query, attention/dense
    labels: int = 2  # outputs of its head; 0: the model's own head
    # of an adapter that the folder has (stored.py): rank, and bytes of both factors, by the name of the product's node
    terms: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @staticmethod
    def of(text: str) -> Task:
        """`NAME:REQUESTS:RANK:MATRIX,MATRIX`, `:LABELS` behind it or not; `NAME:REQUESTS`, of rank 0, for an adapter of
        the folder. Raises InputError."""
        parts = text.split(":")
        numbers = [*parts[1:3], *parts[4:]]
        if len(parts) not in (2, 4, 5) or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in numbers):
            raise InputError(
                f"--task {text!r}: expected NAME:REQUESTS:RANK:MATRIX,MATRIX, such as sst2:20000:8:query,value, or "
                "NAME:REQUESTS for an adapter of the folder"
            )
        if len(parts) == 2:
            if not parts[0].strip() or int(parts[1]) < 1:
                raise InputError(f"--task {text!r}: a name and one request at least are needed")
            return Task(parts[0].strip(), int(parts[1]), 0, (), 0)
        matrices = tuple(name.strip() for name in parts[3].split(",") if name.strip())
        values = [int(number) for number in numbers]
        if not parts[0].strip() or not matrices or min(values) < 1:
            raise InputError(f"--task {text!r}: a name, one matrix, and numbers of at least 1 are needed")
        return Task(parts[0].strip(), values[0], values[1], matrices, values[2] if len(values) > 2 else 2)


@dataclass(frozen=True)
class Day:
    """One way to keep the tasks, over the day."""

    way: str
    request_s: float  # of one request, on average
    request_j: float
    switches: float
    switch_s: float  # of one switch, on average
    switch_j: float
    switch_bytes: float
    rest_j: float  # while nothing is asked
    area_mm2: float

    requests: int = 0

    @property
    def joules(self) -> float:
        return self.requests * self.request_j + self.switches * self.switch_j + self.rest_j

    @property
    def busy_s(self) -> float:
        return self.requests * self.request_s + self.switches * self.switch_s

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "joules": self.joules, "busy_s": self.busy_s}


def with_adapter(work: Sequence[Operation], task: Task) -> list[Operation]:
    """The backbone's work and the task's: factors beside its matrices, a head behind it, norms and biases its own.

    A matrix that layers share has factors that they share. An adapter of the folder has its factors alone. Raises
    InputError for a matrix that is not there.
    """
    if task.terms:
        return [one for op in work for one in (op, *_stored_factors(op, task))]
    if not task.rank:
        raise InputError(f"task {task.name}: no adapter of a folder; give NAME:REQUESTS:RANK:MATRIX,MATRIX")
    found, used = list[Operation](), set[str]()
    for op in work:
        other = op.kind not in ("linear", "embedding", "experts")
        found.append(replace(op, changes=True) if other and op.weight_bytes else op)
        ends = [end for end in task.matrices if f"/{op.name}".endswith(f"/{end}")]
        if op.kind == "linear" and ends:
            used.add(ends[0])
            if task.rank > min(op.rows, op.columns):
                sides = f"{op.rows} x {op.columns}"
                raise InputError(f"task {task.name}: rank {task.rank} of {op.name}, a matrix of {sides}")
            found += [_factor(op, task.rank, op.columns, "down"), _factor(op, op.rows, task.rank, "up")]
    if missing := [end for end in task.matrices if end not in used]:
        names = sorted({op.name.rpartition("/")[2] for op in work if op.kind == "linear"})
        raise InputError(f"task {task.name}: no matrix is called {missing[0]!r}; there are {', '.join(names[:20])}")
    width = next(op.columns for op in reversed(work) if op.kind == "linear")
    head = task.labels * width
    size = head * _ADAPTER_BITS // 8
    found.append(
        Operation(
            f"{task.name}/head",
            "linear",
            macs=head,
            weight_bytes=size,
            activation_bytes=4 * (width + task.labels),
            rows=task.labels,
            columns=width,
            weight_bits=_ADAPTER_BITS,
            changes=True,
        )
    )
    return found


def _factor(op: Operation, rows: int, columns: int, name: str) -> Operation:
    size = math.ceil(rows * columns * _ADAPTER_BITS / 8)
    return Operation(
        f"{op.name}/{name}", "linear", macs=op.vectors * rows * columns, weight_bytes=size,
        activation_bytes=4 * op.vectors * (rows + columns), rows=rows, columns=columns, weight_bits=_ADAPTER_BITS,
        uses=op.uses, again=op.again, changes=True,
    )  # fmt: skip


def _stored_factors(op: Operation, task: Task) -> list[Operation]:
    """The factors of an adapter beside one product, as many bytes as the folder has of them."""
    if op.kind != "linear" or op.name not in task.terms:
        return []
    rank, down, up = task.terms[op.name]
    both = ((_factor(op, rank, op.columns, "down"), down), (_factor(op, op.rows, rank, "up"), up))
    return [replace(f, weight_bytes=size, weight_bits=8 * size / (f.rows * f.columns)) for f, size in both]


def own_bytes(work: Sequence[Operation]) -> float:
    """Bytes that a switch to this task rewrites."""
    return float(
        sum(op.weight_bytes if op.kind == "linear" else op.stored for op in work if op.changes and not op.again)
    )


def switches(tasks: Sequence[Task], mixed: bool) -> float:
    """Changes of task in a day: expected ones of requests in random order, or one a task where they are grouped."""
    total = sum(task.requests for task in tasks)
    if not mixed:
        return float(len(tasks))
    same = sum(task.requests * (task.requests - 1) for task in tasks) / max(total * (total - 1), 1)
    return 1 + (total - 1) * (1 - same)


def day(work: Sequence[Operation], phase: Phase, target: Target, tasks: Sequence[Task], mixed: bool) -> list[Day]:
    """The day on adapters in SRAM, on whole models in SRAM, and on whole models in RRAM. Raises InputError."""
    if target.kind != "stream":
        raise InputError(f"{target.name}: a day of tasks is priced on targets of kind stream, such as hetero-albert")
    if len(tasks) < 2 or len({task.name for task in tasks}) < len(tasks):
        raise InputError("give two tasks or more, each with a name of its own")
    total, changes = sum(task.requests for task in tasks), switches(tasks, mixed)
    if total > _MOST:
        raise InputError(f"{total:,} requests; a day has {_MOST:,} at most")
    works = [(task.requests / total, with_adapter(work, task)) for task in tasks]
    own = sum(share * own_bytes(found) for share, found in works)
    whole = float(stored_bytes(work, target)) + sum(op.stored for op in work if op.kind not in ("linear", "embedding"))
    buffer = own, own / target["dram_bandwidth"], target["dram_energy"] + target["buffer_energy"]
    plain = [(1.0, [op for op in works[0][1] if not (op.kind == "linear" and op.changes and "/head" not in op.name)])]
    in_sram = _with_sram(target)
    write_s = max(whole / target["dram_bandwidth"], whole / target["weight_write_bandwidth"])
    found = [
        _day("adapters in SRAM", works, phase, target, total, changes, *buffer),
        _day("models into SRAM", plain, phase, in_sram, total, changes, whole,
             whole / target["dram_bandwidth"], target["dram_energy"] + target["buffer_energy"]),
        _day("models into RRAM", plain, phase, target, total, changes, whole, write_s,
             target["dram_energy"] + target["weight_write_energy"]),
    ]  # fmt: skip
    if (busy := found[0].busy_s) > SECONDS:
        raise InputError(f"{total:,} requests take {busy:,.0f} s, longer than the day")
    return found


def _with_sram(target: Target) -> Target:
    """The same machine whose weight memory is SRAM of the size, leakage and energy of its buffer."""
    names = {"weight_energy": "buffer_energy", "weight_area": "buffer_area", "weight_leakage": "buffer_leakage"}
    return target.varied({name: target[other] for name, other in names.items()})


def _day(
    way: str, works: Sequence[tuple[float, Sequence[Operation]]], phase: Phase, target: Target, requests: int,
    changes: float, size: float, seconds: float, joules_a_byte: float,
) -> Day:  # fmt: skip
    reports = [(share, price(found, phase, target, ranged=False)) for share, found in works]
    memory = target["weight_capacity"] * target["weight_leakage"] + target["buffer_capacity"] * target["buffer_leakage"]
    all_power = sum(part.leakage_w for part in reports[0][1].components)
    found = Day(
        way, sum(share * r.latency_s for share, r in reports), sum(share * (r.energy_j or 0) for share, r in reports),
        changes, seconds, size * joules_a_byte + seconds * all_power, size, 0.0, reports[0][1].area_mm2 or 0.0,
        requests,
    )  # fmt: skip
    return replace(found, rest_j=max(SECONDS - found.busy_s, 0.0) * memory)
