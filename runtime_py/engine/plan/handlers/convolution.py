"""Gated short convolutions (export/graph/recurrent/convolution.py): one step from a product of gates to the other gate.

What stands between is kept apart from plain values (values.py, Convolving). The new state is made by the same step, so
a graph whose state is anything else than the last columns of what is convolved is not planned.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.earlier import turned
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Convolving, Tokens, token_mask_hides_padding_only
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.convolution import ShortConvolution

GATED, COLUMNS, SEEN, NEAR, CONVOLVED, ROWS = range(6)  # what a value of a short convolution is
_END = 1 << 30  # a slice to here or beyond goes to the end


@handles("", "Transpose")
def transpose(context: Context, node: Node) -> None:
    if turned(context, node):
        return
    found = _convolving(context, node, 0, GATED, CONVOLVED)
    if list(node.attributes.get("perm", ())) != [0, 2, 1]:
        raise Unplannable(f"the transposition {node.name}")
    context.convolve(node.outputs[0], replace(found, kind=COLUMNS if found.kind == GATED else ROWS))


@handles("", "Concat")
def concat(context: Context, node: Node) -> None:
    """A state and the products of this call."""
    found, names = _convolving(context, node, 1, COLUMNS), [state.input for state in context.recurrent]
    if len(node.inputs) != 2 or node.inputs[0] not in names or node.attributes.get("axis") not in (2, -1):
        raise Unplannable(f"the columns joined by {node.name}")
    number = names.index(node.inputs[0])
    shape = context.recurrent[number].shape
    if context.uses(node.inputs[0]) != 1 or len(shape) != 3 or shape[1] != found.inner.width:
        raise Unplannable(f"the state of {node.name}")
    context.convolve(node.outputs[0], replace(found, kind=SEEN, state=number, width=shape[2]))


@handles("", "Slice")
def cut(context: Context, node: Node) -> None:
    """The new state, or what the convolution sees."""
    found, names = _convolving(context, node, 0, SEEN), node.inputs[1:]
    if len(names) not in (3, 4) or not all(map(context.folder.is_constant, names)):
        raise Unplannable(f"the columns of {node.name}")
    start, end, axis, *step = (context.folder.constant(name).reshape(-1).tolist() for name in names)
    if axis != [2] or min(end, default=0) < _END or len(end) != 1 or any(some != [1] for some in step):
        raise Unplannable(f"the columns of {node.name}")
    if start == [-found.width] and node.outputs[0] == context.recurrent[found.state].output:
        context.advanced.add(node.outputs[0])
    elif start == [1]:
        context.convolve(node.outputs[0], replace(found, kind=NEAR))
    else:
        raise Unplannable(f"the columns of {node.name}")


@handles("", "Conv")
def convolution(context: Context, node: Node) -> None:
    found = _convolving(context, node, 0, NEAR)
    if not all(context.folder.is_constant(name) for name in node.inputs[1:] if name):
        raise Unplannable(f"the weights of {node.name}")
    weights, columns = context.folder.constant(node.inputs[1]), found.inner.width
    steps = [*node.attributes.get("strides", ()), *node.attributes.get("dilations", ())]
    plain = not any(node.attributes.get("pads", ())) and all(step == 1 for step in steps)
    plain = plain and node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", b"NOTSET")
    if not plain or node.attributes.get("group", 1) != columns or weights.shape != (columns, 1, found.width):
        raise Unplannable(f"the convolution {node.name}")
    kernel = context.stored(np.ascontiguousarray(weights[:, 0].T, np.float32))
    bias = context.vector(node.inputs[2], columns) if len(node.inputs) > 2 and node.inputs[2] else 0
    context.bytes_per_token += 4 * columns * found.width
    context.convolve(node.outputs[0], replace(found, kind=CONVOLVED, kernel=kernel, bias=bias))


def masked(context: Context, node: Node) -> bool:
    """Leave out a product with the mask of this call's tokens, of which none is padding; False where it is none."""
    for value, mask in (node.inputs, node.inputs[::-1]):
        made = context.values.get(mask) or context.convolving.get(mask) or context.routed.get(mask)
        if made is None and context.folder.producer(mask) is not None and value in context.values:
            if not token_mask_hides_padding_only(context.folder, mask):
                raise Unplannable(f"the mask of {node.name}")
            context.give(node.outputs[0], context.tokens(value))
            return True
    return False


def gated(context: Context, node: Node) -> bool:
    """Plan the product of two values as what a convolution begins with, or that with its end; False for neither."""
    for name, other in (node.inputs, node.inputs[::-1]):
        found = context.convolving.get(name)
        if found is not None:
            if found.kind != ROWS:
                raise Unplannable(f"the product {node.name}")
            _emit(context, node, found, context.tokens(other))
            return True
    both = [context.values.get(name) for name in node.inputs]
    inner, values = both if len(both) == 2 else (None, None)
    if not isinstance(inner, Tokens) or not isinstance(values, Tokens):
        return False
    inner, values = (context.tokens(name) for name in node.inputs)
    if inner.width != values.width:
        raise Unplannable(f"the product {node.name}")
    context.convolve(node.outputs[0], Convolving(GATED, inner, values))
    return True


def _emit(context: Context, node: Node, found: Convolving, outer: Tokens) -> None:
    inner, values = found.inner, found.values
    if outer.width != inner.width or len({inner.stride, values.stride, outer.stride}) != 1:
        raise Unplannable(f"the gates of {node.name}")
    out = context.new(outer.width)
    step = ShortConvolution[Argument](
        inner=inner.place,
        values=values.place,
        outer=outer.place,
        stride=outer.stride,
        columns=outer.width,
        width=found.width,
        kernel=found.kernel,
        bias=found.bias,
        past=External(f"past_state.{found.state}"),
        present=External(f"present_state.{found.state}"),
        out=out.place,
    )
    context.emit(step, [inner.buffer, values.buffer, outer.buffer], [out.buffer])
    context.give(node.outputs[0], out)


def _convolving(context: Context, node: Node, place: int, *kinds: int) -> Convolving:
    found = context.convolving.get(node.inputs[place]) if place < len(node.inputs) else None
    if found is None or found.kind not in kinds:
        raise Unplannable(f"operator {node.op_type} of node {node.name}")
    return found
