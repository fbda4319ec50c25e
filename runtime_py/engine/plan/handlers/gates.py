"""The clamped gate of export/graph/spec.py, g * sigmoid(alpha * g) * (u + 1): its seven nodes become one Activate.

What stands between is kept apart from plain values (values.py, Gate), so that no other operator can take it for one.
"""

from __future__ import annotations

import math

from export.artefacts.graph import Node
from runtime_py.engine.layout.functions import CLAMPED
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Gate
from runtime_py.engine.records.errors import Unplannable

CUT, STEEP, SHARE, ACTIVE, NEAR, MORE = range(
    6
)  # what a value is: min(gate), alpha *, its sigmoid, product; clip(up), + 1


@handles("", "Min")
def minimum(context: Context, node: Node) -> None:
    gate, limit = context.tokens(node.inputs[0], in_heads=True), _number(context, node, 1)
    if len(node.inputs) != 2 or not 0 < limit < math.inf:
        raise Unplannable(f"the minimum {node.name}")
    context.gate(node.outputs[0], Gate(CUT, gate, limit))


@handles("", "Clip")
def clip(context: Context, node: Node) -> None:
    up, limit = context.tokens(node.inputs[0], in_heads=True), _number(context, node, 2)
    if _number(context, node, 1) != -limit or not 0 < limit < math.inf:
        raise Unplannable(f"the limits of {node.name}")
    context.gate(node.outputs[0], Gate(NEAR, up, limit))


def of_gate(context: Context, node: Node) -> bool:
    """Plan a Mul, Sigmoid or Add with a value of a gate; False where it has none."""
    found = [context.gates.get(name) for name in node.inputs]
    if not any(found):
        return False
    made = _made(context, node, found)
    if made is None:
        raise Unplannable(f"the gate {node.name}")
    if isinstance(made, Gate):
        context.gate(node.outputs[0], made)
    return True


def _made(context: Context, node: Node, found: list[Gate | None]) -> Gate | bool | None:
    """The gate's next value; True where it is whole and a step of its own makes it; None where it is no gate."""
    kinds = [value.kind if value is not None else None for value in found]
    first, second = found[0], found[-1]
    if node.op_type == "Sigmoid" and kinds == [STEEP] and first is not None:
        return Gate(SHARE, first.source, first.limit, first.alpha)
    if first is None or len(found) != 2:
        return None
    if kinds == [CUT, None] and node.op_type == "Mul":
        alpha = _number(context, node, 1)
        return Gate(STEEP, first.source, first.limit, alpha) if math.isfinite(alpha) else None
    if kinds == [NEAR, None] and node.op_type == "Add":
        return Gate(MORE, first.source, first.limit) if _number(context, node, 1) == 1 else None
    if second is None or node.op_type != "Mul" or first.limit != second.limit:
        return None
    if kinds == [CUT, SHARE] and first.source is second.source:
        return Gate(ACTIVE, first.source, first.limit, second.alpha)
    if kinds != [ACTIVE, MORE]:
        return None
    made = context.activated(CLAMPED, first.source, second.source, first.alpha, first.limit)
    context.give(node.outputs[0], made)
    return True


def _number(context: Context, node: Node, place: int) -> float:
    """A constant of one number among the inputs."""
    name = node.inputs[place] if place < len(node.inputs) else ""
    if not name or not context.folder.is_constant(name) or context.folder.constant(name).size != 1:
        raise Unplannable(f"the inputs of {node.name}")
    return float(context.folder.constant(name).reshape(-1)[0])
