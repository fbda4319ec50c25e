"""Turns the graph of a model folder into steps: reads what our exporter writes, fuses, and refuses what it cannot plan.

Fused: quantization of activations into the step that makes them, biases and residual sums into the product before them,
an activation with its gate, rotary positions with the KV append. A graph it cannot plan raises Unplannable with the
reason, and the interpreter (runtime_py/reference/session.py) runs it node by node.
"""

from __future__ import annotations

from export.artefacts.graph import RUNTIME_DOMAIN, Graph, Node
from export.contract.formats.codebook import CODEBOOK_GATHER
from export.contract.formats.groups import GROUP_GATHER
from runtime_py.engine.plan.adapters import Slots
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers import handler_of
from runtime_py.engine.plan.placement import External
from runtime_py.engine.plan.values import Tokens
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.elementwise import Norm
from runtime_py.engine.steps.products import Product
from runtime_py.engine.steps.step import Making

_LOOKUPS = (CODEBOOK_GATHER, GROUP_GATHER, "Gather")


def plan_decoder(graph: Graph, chunk: int, slots: Slots | None = None, cache_bits: int = 16) -> Context:
    """All of a language model. chunk: most tokens of a call. slots: of adapters. cache_bits: of each cached number.

    Raises Unplannable.
    """
    slots = slots or Slots()
    context = Context(graph, chunk, ("input_ids", "position_ids"), "logits", counted_positions=False)
    context.cache_bits = cache_bits
    for node in graph.nodes:
        context.enter(node)
        _visit(context, node, slots)
    left = [state.output for state in context.recurrent if state.output not in context.advanced]
    if left:
        raise Unplannable(f"the state {left[0]}")
    _mark_last(context)
    _send_out(context)
    slots.insert(context)
    return context


def plan_encoder(graph: Graph, chunk: int, states: str, slots: Slots | None = None) -> Context:
    """An encoder up to its states of all tokens; what comes behind is left out. Raises Unplannable."""
    slots = slots or Slots()
    indices = ("input_ids", "position_ids", "token_type_ids")
    context = Context(graph, chunk, indices, states, counted_positions=True)
    for node in graph.nodes:
        context.enter(node)
        _visit(context, node, slots)
        if states in node.outputs:
            break
    _send_out(context)
    slots.insert(context)
    return context


def _visit(context: Context, node: Node, slots: Slots) -> None:
    if all(name in context.graph.weights for name in node.inputs if name):
        return  # a constant: computed if somebody asks
    known = any(name in context.values or name in context.razored or name in context.halves for name in node.inputs)
    special = (context.routed, context.convolving, context.gates, context.by_head)
    known = known or any(name in found for found in special for name in node.inputs)
    if not known and node.op_type not in _LOOKUPS:
        return  # masks and rotations: only attention reads them
    if node.domain == RUNTIME_DOMAIN:
        slots.place(context, node)
        return
    handler = handler_of(node)
    if handler is None:
        raise Unplannable(f"operator {node.op_type} of node {node.name}")
    handler(context, node)
    slots.note(context, node)


def _mark_last(context: Context) -> None:
    """Steps from the last norm on concern one token when only the last logits are asked for."""
    steps = context.steps
    norms = [i for i, planned in enumerate(steps) if isinstance(planned.step, Norm) and planned.step.heads == 1]
    if not isinstance(context.values.get(context.result), Tokens) or not norms:
        raise Unplannable(f"no {context.result} behind a norm")
    made = {buffer for planned in steps[: norms[-1]] for buffer in planned.writes}
    tail = steps[norms[-1] + 1 :]
    if any(b in made for planned in tail for b in planned.reads) or any(p.step.by_position for p in tail):
        raise Unplannable("a head that reads more than the last norm")
    for planned in steps[norms[-1] :]:
        planned.last = True


def _send_out(context: Context) -> None:
    """Let the step that makes the result write it to the caller's memory, External "result"."""
    name = context.result
    result = context.values.get(name)
    if not isinstance(result, Tokens):
        raise Unplannable(f"{name}, which is no value of the tokens")
    writer = next((planned for planned in reversed(context.steps) if result.buffer in planned.writes), None)
    sums = writer is not None and isinstance(writer.step, Product) and writer.step.accumulate
    if writer is None or not isinstance(writer.step, Making) or sums:
        raise Unplannable(f"{name}, which no step of its own makes")
    if not result.whole or result.heads != 1 or any(result.buffer in planned.reads for planned in context.steps):
        raise Unplannable(f"{name}, which is a part of a value or is read again")
    context.result_width = result.width
    writer.step.out = External("result")
    writer.writes.remove(result.buffer)
