"""Selective state spaces (export/graph/recurrent/state_space.py): one step, which makes the new state, too."""

from __future__ import annotations

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.state_space import SELECTIVE_STATE_SPACE, StateSpaceLayout
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.delta_net import state_of
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.delta_net import blocks
from runtime_py.engine.steps.state_space import StateSpace


@handles(DOMAIN, SELECTIVE_STATE_SPACE)
def state_space(context: Context, node: Node) -> None:
    if len(node.inputs) != 8 or not all(map(context.folder.is_constant, node.inputs[4:7])):
        raise Unplannable(f"the inputs of {node.name}")
    value, step, written, read = (context.tokens(name) for name in node.inputs[:4])
    try:
        layout = StateSpaceLayout.of(node.attributes, written.width, value.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    same = written.width == read.width and written.stride == read.stride == value.stride
    if not same or step.width != layout.heads:
        raise Unplannable(f"the heads of {node.name}")
    number = state_of(context, node, 7, layout.state)
    context.held[number] = (layout.heads, blocks(layout.head_dim), layout.state_size, COLUMNS)
    rate, bias, skip = (context.vector(name, layout.heads) for name in node.inputs[4:7])
    out = context.new(value.width)
    made = StateSpace[Argument](
        value=value.place,
        written=written.place,
        read=read.place,
        stride=value.stride,
        step=step.place,
        step_stride=step.stride,
        rate=rate,
        bias=bias,
        skip=skip,
        heads=layout.heads,
        groups=layout.groups,
        state_size=layout.state_size,
        head_dim=layout.head_dim,
        least=layout.least,
        most=layout.most,
        past=External(f"past_state.{number}"),
        present=External(f"present_state.{number}"),
        out=out.place,
    )
    inputs = dict.fromkeys((value.buffer, step.buffer, written.buffer, read.buffer))
    context.emit(made, list(inputs), [out.buffer])
    context.give(node.outputs[0], out)
