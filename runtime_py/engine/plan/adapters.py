"""Adapters' terms beside the planned products, and bottlenecks where a node was made for them.

A product's output may have become a part of a residual sum by the time the plan is finished, so the terms come last:
products that follow one another and do not need each other's results stay together, with the first halves of their
terms before them and the second halves behind. That is one more barrier for each such run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from export.artefacts.graph import Node
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import Argument, Buffer, External, Place, PlannedStep
from runtime_py.engine.plan.values import Tokens
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.adapters import AdapterDown, AdapterUp
from runtime_py.engine.steps.experts import ExpertMatMul
from runtime_py.engine.steps.products import Product

RECORDS = "adapter"  # the External that the steps' `terms` are


@dataclass
class Slots:
    """Where terms may come: slots by the name of a node, the largest rank that one will have, and the nodes' sizes."""

    numbers: Mapping[str, int] = field(default_factory=dict)
    most: int = 1
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # rows, columns
    planned: dict[int, tuple[PlannedStep, Tokens, int]] = field(default_factory=dict)  # by the step's identity
    placed: int = 0  # bottlenecks

    def place(self, context: Context, node: Node) -> None:
        """Plan an AddBottleneck(y, x): both halves at once, y changed where it lies. Raises Unplannable."""
        slot = self.numbers.get(node.name)
        y, x = (context.tokens(name) for name in node.inputs)
        if slot is None or self.sizes[node.name] != (y.width, x.width) or not y.whole or context.needed(y.buffer):
            raise Unplannable(f"a bottleneck at {node.name}")
        made = Buffer(4 * self.most * context.chunk)
        down = AdapterDown[Argument](
            terms=External(RECORDS), slot=slot, most=self.most, source=x.place, stride=x.stride, columns=x.width,
            out=Place(made),
        )  # fmt: skip
        up = AdapterUp[Argument](
            terms=External(RECORDS), slot=slot, most=self.most, source=Place(made), rows=y.width, out=y.place
        )
        context.emit(down, [x.buffer], [made])
        context.emit(up, [made, y.buffer], [y.buffer])
        context.quantized.pop(y.buffer, None)
        context.give(node.outputs[0], y)
        self.placed += 1

    def note(self, context: Context, node: Node) -> None:
        """Called when a node has been planned. Raises Unplannable where a slot's product is none."""
        slot = self.numbers.get(node.name)
        if slot is None:
            return
        last = context.steps[-1] if context.steps else None
        if last is None or not isinstance(last.step, Product) or isinstance(last.step, ExpertMatMul):
            raise Unplannable(f"an adapter at {node.name}, which is no product")
        self.planned[id(last)] = (last, context.tokens(node.inputs[0]), slot)

    def insert(self, context: Context) -> None:
        """Put the terms beside their products."""
        if not self.numbers:
            return
        if len(self.planned) + self.placed < len(self.numbers):
            raise Unplannable("an adapter at a product that is not planned")
        steps: list[PlannedStep] = []
        run: list[tuple[PlannedStep, Tokens, int]] = []
        for planned in context.steps:
            found = self.planned.get(id(planned))
            if run and (found is None or _depends(found, run)):
                steps += self._run(context, run)
                run = []
            if found is None:
                steps.append(planned)
            else:
                run.append(found)
        context.steps[:] = [*steps, *self._run(context, run)]

    def _run(self, context: Context, run: list[tuple[PlannedStep, Tokens, int]]) -> list[PlannedStep]:
        before, behind = [], []
        for planned, x, slot in run:
            assert isinstance(planned.step, Product)
            made = Buffer(4 * self.most * context.chunk)
            down = AdapterDown[Argument](
                terms=External(RECORDS), slot=slot, most=self.most, source=x.place, stride=x.stride, columns=x.width,
                out=Place(made),
            )  # fmt: skip
            up = AdapterUp[Argument](
                terms=External(RECORDS), slot=slot, most=self.most, source=Place(made), rows=planned.step.rows,
                out=planned.step.out,
            )  # fmt: skip
            if not planned.writes:  # the caller's memory, which no buffer stands for
                planned.writes = [Buffer(0)]
            before.append(PlannedStep(down, [x.buffer], [made], last=planned.last))
            behind.append(PlannedStep(up, [made, *planned.writes], [*planned.writes], last=planned.last))
        return [*before, *(planned for planned, _, _ in run), *behind]


def _depends(found: tuple[PlannedStep, Tokens, int], run: list[tuple[PlannedStep, Tokens, int]]) -> bool:
    """Whether a product reads what one of a run writes, or writes what one of it reads or writes."""
    planned, x, _ = found
    reads, writes = {id(b) for b in (*planned.reads, x.buffer)}, {id(b) for b in planned.writes}
    for other, other_x, _ in run:
        touched = {id(b) for b in (*other.reads, other_x.buffer)}
        made = {id(b) for b in other.writes}
        if made & (reads | writes) or touched & writes:
            return True
    return planned.last != run[0][0].last
