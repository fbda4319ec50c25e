"""Gated delta nets (export/graph/recurrent/delta_net.py): a step for convolution and activation, one for the rule.

Both make the new states, too: a graph where anything else makes them, or reads them, is not planned.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION, LEAST_WIDTH
from export.contract.operators.delta_rule import GATED_DELTA_RULE, DeltaRuleLayout
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.delta_net import PLAIN, CausalConvolution, DeltaRule, blocks


@handles(DOMAIN, CAUSAL_CONVOLUTION)
def causal_convolution(context: Context, node: Node) -> None:
    if len(node.inputs) != 3 or not context.folder.is_constant(node.inputs[1]):
        raise Unplannable(f"the weights of {node.name}")
    x, weights = context.tokens(node.inputs[0]), context.folder.constant(node.inputs[1])
    if weights.ndim != 3 or weights.shape[:2] != (x.width, 1) or weights.shape[2] < LEAST_WIDTH:
        raise Unplannable(f"the weights of {node.name}")
    width = weights.shape[2]
    number = state_of(context, node, 2, (x.width, width - 1))
    out = context.new(x.width)
    context.bytes_per_token += 4 * weights.size
    step = CausalConvolution[Argument](
        source=x.place,
        stride=x.stride,
        columns=x.width,
        width=width,
        kernel=context.stored(np.ascontiguousarray(weights[:, 0].T, np.float32)),
        bias=0,
        kind=PLAIN,
        past=External(f"past_state.{number}"),
        present=External(f"present_state.{number}"),
        out=out.place,
    )
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)


@handles(DOMAIN, GATED_DELTA_RULE)
def delta_rule(context: Context, node: Node) -> None:
    if len(node.inputs) != 8 or not all(map(context.folder.is_constant, node.inputs[5:7])):
        raise Unplannable(f"the inputs of {node.name}")
    query, key, value, decay, beta = (context.tokens(name) for name in node.inputs[:5])
    try:
        layout = DeltaRuleLayout.of(node.attributes, key.width, value.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    same = query.width == key.width and query.stride == key.stride == value.stride
    if not same or decay.width != layout.value_heads or beta.width != layout.value_heads:
        raise Unplannable(f"the heads of {node.name}")
    number = state_of(context, node, 7, layout.state)
    context.held[number] = (layout.value_heads, blocks(layout.value_dim), layout.key_dim, COLUMNS)
    out = context.new(value.width)
    step = DeltaRule[Argument](
        query=query.place,
        key=key.place,
        value=value.place,
        stride=value.stride,
        decay=decay.place,
        decay_stride=decay.stride,
        beta=beta.place,
        beta_stride=beta.stride,
        rate=context.vector(node.inputs[5], layout.value_heads),
        bias=context.vector(node.inputs[6], layout.value_heads),
        key_heads=layout.key_heads,
        value_heads=layout.value_heads,
        key_dim=layout.key_dim,
        value_dim=layout.value_dim,
        epsilon=layout.epsilon,
        past=External(f"past_state.{number}"),
        present=External(f"present_state.{number}"),
        out=out.place,
    )
    read = [query.buffer, key.buffer, value.buffer, decay.buffer, beta.buffer]
    context.emit(step, list(dict.fromkeys(read)), [out.buffer])
    context.give(node.outputs[0], out)


def state_of(context: Context, node: Node, place: int, shape: tuple[int, ...]) -> int:
    """Number of the state that this node alone reads and makes anew."""
    names = [state.input for state in context.recurrent]
    if node.inputs[place] not in names or len(node.outputs) != 2 or context.uses(node.inputs[place]) != 1:
        raise Unplannable(f"the state of {node.name}")
    number = names.index(node.inputs[place])
    found = context.recurrent[number]
    if found.shape != (1, *shape) or node.outputs[1] != found.output or context.uses(found.output):
        raise Unplannable(f"the state of {node.name}")
    context.advanced.add(found.output)
    return number
