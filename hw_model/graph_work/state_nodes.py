"""The work of operators that keep a state of one size: convolutions, the delta rule, state spaces."""

from __future__ import annotations

import math

from export.artefacts.graph import Node
from export.artefacts.states import is_recurrent
from export.contract.errors import InputError
from export.contract.operators.delta_rule import DeltaRuleLayout
from export.contract.operators.state_space import StateSpaceLayout
from hw_model.graph_work.context import Context
from hw_model.graph_work.operation import ACTIVATION_BYTES, CACHE_BYTES, Operation


def convolution(node: Node, context: Context) -> Operation:
    """A convolution of each channel alone: a vector unit does it. A state of its input is read and written once."""
    weights = context.shape(node.inputs[1])
    if node.inputs[1] not in context.constant or node.attributes.get("group", 1) != weights[0] or weights[1] != 1:
        raise InputError(f"model.onnx: Conv {node.name} of several channels together has no cost model")
    state = CACHE_BYTES * _state_elements(context, node.inputs[0])
    return Operation(
        node.name, "convolution", vector_ops=2 * math.prod(weights[2:]) * context.made(node),
        weight_bytes=context.weight_bytes(node), cache_read_bytes=state, cache_write_bytes=state,
        activation_bytes=context.moved(node) - state,
    )  # fmt: skip


def causal_convolution(node: Node, context: Context) -> Operation:
    """The same as an operator of ours."""
    state = CACHE_BYTES * context.elements(node.inputs[2])
    return Operation(
        node.name, "convolution", vector_ops=2 * context.shape(node.inputs[1])[-1] * context.made(node),
        weight_bytes=context.weight_bytes(node), cache_read_bytes=state, cache_write_bytes=state,
        activation_bytes=ACTIVATION_BYTES * (context.made(node) + context.elements(node.inputs[0])),
    )  # fmt: skip


def delta_rule(node: Node, context: Context) -> Operation:
    """For each number of the state and token: what the key reads, decay and change, what the query reads.

    A vector unit does it, for the state changes with every token; a call reads and writes it once.
    """
    keys, values = context.shape(node.inputs[1])[-1], context.shape(node.inputs[2])[-1]
    layout = node.attributes_as(DeltaRuleLayout.of, keys, values)
    tokens, state = context.phase.vectors, math.prod(layout.state)
    by_token = 7 * state + 6 * keys + 5 * values + 16 * layout.value_heads  # lengths; differences; decay and step
    moved = context.made(node) + sum(context.elements(name) for name in node.inputs[:5])
    return Operation(
        node.name, "delta rule", vector_ops=tokens * by_token, weight_bytes=context.weight_bytes(node),
        cache_read_bytes=CACHE_BYTES * state * context.phase.sequences,
        cache_write_bytes=CACHE_BYTES * state * context.phase.sequences, activation_bytes=ACTIVATION_BYTES * moved,
    )  # fmt: skip


def state_space(node: Node, context: Context) -> Operation:
    """For each number of the state and token: decay, what the token writes, what it reads.

    A vector unit does it, as of the delta rule; a call reads and writes the state once.
    """
    states, values = context.shape(node.inputs[2])[-1], context.shape(node.inputs[0])[-1]
    layout = node.attributes_as(StateSpaceLayout.of, states, values)
    tokens, state = context.phase.vectors, math.prod(layout.state)
    by_token = 5 * state + 3 * values + 12 * layout.heads  # times the step, what is skipped; step and decay
    moved = context.made(node) + sum(context.elements(name) for name in node.inputs[:4])
    return Operation(
        node.name, "state space", vector_ops=tokens * by_token, weight_bytes=context.weight_bytes(node),
        cache_read_bytes=CACHE_BYTES * state * context.phase.sequences,
        cache_write_bytes=CACHE_BYTES * state * context.phase.sequences, activation_bytes=ACTIVATION_BYTES * moved,
    )  # fmt: skip


def _state_elements(context: Context, name: str) -> int:
    """Numbers of the recurrent state that a value begins with; 0 for none."""
    waiting, seen, states = [name], set[str](), {info.name for info in context.graph.inputs if is_recurrent(info.name)}
    while waiting:
        if (name := waiting.pop()) in states:
            return context.elements(name)
        node = context.makers.get(name)
        if node is not None and node.name not in seen and node.op_type in ("Slice", "Concat"):
            seen.add(node.name)
            waiting += node.inputs
    return 0
