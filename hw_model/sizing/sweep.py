"""Many variants priced: targets and their constants, contexts, phases, batches, stored bits and whole models.

Every combination is one point. A point is best where no other that computes the same tokens is better in latency,
energy, area and accuracy at once; one whose accuracy is lost and not measured is never best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from export.files.foreign import foreign
from hw_model.accuracy import Accuracy, losses
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.machines.result import CostReport
from hw_model.sizing.variation import OF_THE_WORK, Values
from targets import Target, TargetError

_MOST = 100_000  # combinations
_OVERHEAD = 0.1  # of the bits of a width: scales, codebooks, some wider matrices


@dataclass(frozen=True)
class Model:
    """One model: its work in a phase, and the divergence that its own bits cost, where it was measured."""

    name: str
    work: Callable[[Phase], Sequence[Operation]]
    kl: float | None = None

    @staticmethod
    def of(graph: Graph, kl: float | None = None) -> Model:
        """That of a model folder."""

        def work(phase: Phase) -> Sequence[Operation]:
            with foreign(graph.folder / "model.onnx", "the graph is malformed"):
                return operations(graph, phase)

        return Model(str(graph.folder), work, kl)


@dataclass(frozen=True)
class Start:
    """What is priced where nothing varies it."""

    target: str
    phase: str = "decode"
    context: int = 1024
    batch: int = 1
    objective: str = "latency"
    changes: Mapping[str, str] | None = None  # of every target


@dataclass(frozen=True)
class Point:
    """One variant and its cost. best: no other variant is better in latency, energy, area and accuracy at once."""

    values: Mapping[str, float | str]
    report: CostReport
    accuracy: Accuracy
    best: bool = False

    @property
    def work(self) -> tuple[str, int, int]:
        """Points of the same phase, context and number of sequences are comparable."""
        return self.report.phase, self.report.context, self.report.tokens

    def to_json(self) -> dict[str, Any]:
        r = self.report
        return {
            **self.values, "latency_s": r.latency_s, "energy_j": r.energy_j, "area_mm2": r.area_mm2,
            "energy_delay_js": r.energy_delay, "tokens_per_s": r.tokens_per_s, "best": self.best,
            "lossless": not self.accuracy.losses, "kl": self.accuracy.kl, "accuracy": self.accuracy.text(),
            "bound_by": r.bound_by,
        }  # fmt: skip


Emulated = Callable[[Model, Target], float | None]  # the divergence that emulation of a target gave, if there is one


def sweep(
    models: Sequence[Model], start: Start, variations: Sequence[tuple[str, Values]],
    emulated: Emulated = lambda model, target: None, progress: Callable[[str], None] = lambda label: None,
) -> list[Point]:  # fmt: skip
    """Price every combination on every model. `progress` is called after each.

    Raises InputError for names and values that are not there, and for more than 100,000 combinations.
    """
    names = [name for name, _ in variations]
    if len(set(names)) < len(names):
        raise InputError(f"--vary: {next(n for n in names if names.count(n) > 1)} is varied twice")
    count = math.prod(len(values) for _, values in variations) * len(models)
    if count > _MOST:
        raise InputError(f"{count} combinations; at most {_MOST} are priced")
    works: dict[tuple[str, Phase], Sequence[Operation]] = {}
    found = []
    combinations = list(itertools.product(*(values for _, values in variations)))
    for model, chosen in itertools.product(models, combinations):
        texts = dict(zip(names, chosen))
        point = _point(model, start, texts, works, emulated)
        if len(models) > 1 and point.accuracy == Accuracy():  # another model's bits are another model's loss
            point = replace(point, accuracy=Accuracy(("the folder's own bits",)))
        shown = {"model": model.name, **point.values} if len(models) > 1 else point.values
        found.append(replace(point, values=shown))
        progress(" ".join(f"{name}={text}" for name, text in texts.items()))
    return _ranked(found)


def _point(
    model: Model, start: Start, texts: Mapping[str, str], works: dict[tuple[str, Phase], Sequence[Operation]],
    emulated: Emulated,
) -> Point:  # fmt: skip
    phase = Phase.of(
        texts.get("phase", start.phase), _whole(texts, "context", start.context), _whole(texts, "batch", start.batch)
    )
    if (model.name, phase) not in works:
        works[model.name, phase] = model.work(phase)
    work, target = works[model.name, phase], open_target(texts.get("target", start.target))
    more: tuple[str, ...] = ()
    if "bits" in texts:
        work, changed = stored_at(work, texts["bits"])
        more = (f"weights stored at {texts['bits']} bits",) if changed else ()
    changes = {**(start.changes or {}), **{n: t for n, t in texts.items() if n not in OF_THE_WORK}}
    values: dict[str, float | str] = {}
    try:
        read = {name: target.read(name, text) for name, text in changes.items()}
        target = target.varied(read)
    except TargetError as error:
        raise InputError(str(error)) from None
    for name, text in texts.items():
        values[name] = read[name] if name in read else text if name in ("phase", "target") else float(text)
    report = price(work, phase, target, "rtl", start.objective, ranged=False)
    reasons = (*losses(target, work), *more)
    kl = (emulated(model, target) if not more else None) if reasons else model.kl
    return Point(values, report, Accuracy(reasons, kl))


def _whole(texts: Mapping[str, str], name: str, default: int) -> int:
    text = texts.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"--vary {name}: must be whole numbers, not {text!r}")
    return int(text)


def stored_at(work: Sequence[Operation], text: str) -> tuple[Sequence[Operation], bool]:
    """The same work with every matrix stored at so many bits a weight, and whether that is another file.

    Bits that the file's matrices have on average, give or take what scales and codebooks add, leave it as it is.
    Raises InputError.
    """
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not 0.1 <= bits <= 32:
        raise InputError(f"--vary bits: must be numbers from 0.1 to 32, not {text!r}")
    matrices = [op for op in work if op.kind == "linear" and not op.again]
    weights = sum(op.rows * op.columns for op in matrices)
    if weights and abs(8 * sum(op.weight_bytes for op in matrices) / weights - bits) <= _OVERHEAD * bits:
        return work, False
    changed = [_stored_at(op, bits) if op.kind in ("linear", "experts") and op.weight_bits else op for op in work]
    return changed, True


def _stored_at(op: Operation, bits: float) -> Operation:
    share = bits / op.weight_bits
    own = None if op.stored_bytes is None else round(op.stored_bytes * share)
    return replace(op, weight_bits=bits, weight_bytes=round(op.weight_bytes * share), stored_bytes=own)


def _ranked(points: Sequence[Point]) -> list[Point]:
    """The points with those marked that no other of the same work dominates; None of unknown accuracy."""
    best = set[int]()
    for work in {point.work for point in points}:
        some = [i for i, point in enumerate(points) if point.work == work and point.accuracy.is_known]
        best |= {some[i] for i in _pareto([_costs(points[i]) for i in some])}
    return [replace(point, best=i in best) for i, point in enumerate(points)]


def _costs(point: Point) -> tuple[float, ...]:
    r = point.report
    return r.latency_s, r.energy_j or 0.0, r.area_mm2 or 0.0, point.accuracy.kl or 0.0


def _pareto(costs: Sequence[tuple[float, ...]]) -> set[int]:
    """Indices of the points that no other point dominates."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=costs.__getitem__):
        if not any(all(a <= b for a, b in zip(costs[j], costs[i])) for j in best):
            best.append(i)
    return set(best)
