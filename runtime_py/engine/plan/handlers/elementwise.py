"""Norms, activations with their gates, factors and views (splits, reshapes)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from export.artefacts.onnx_file.types import FLOAT
from runtime_py.engine.layout.functions import GELU, GELU_TANH, RELU, RELU2, SIGMOID, SILU, TANH
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.convolution import gated, masked
from runtime_py.engine.plan.handlers.experts import scaled, weighted
from runtime_py.engine.plan.handlers.gates import of_gate
from runtime_py.engine.plan.placement import Argument
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Pending, Tokens
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.elementwise import LAYER, RMS, Norm, Scale
from runtime_py.engine.steps.experts import Combine


@handles("", "Cast")
def cast(context: Context, node: Node) -> None:
    value = context.values.get(node.inputs[0]) or context.halves.get(node.inputs[0])
    if value is None or node.attributes.get("to") != FLOAT:
        raise Unplannable(f"the cast {node.name}")
    context.give(node.outputs[0], value)


@handles("", "Reshape")
def reshape(context: Context, node: Node) -> None:
    """Only the last dimension may be cut into heads, or joined again."""
    x, shape = context.tokens(node.inputs[0], in_heads=True), context.folder.constant(node.inputs[1]).tolist()
    heads = shape[2] if len(shape) == 4 else 1
    if (
        min(shape[2:], default=0) < 1
        or shape[:2] != [0, 0]
        or len(shape) not in (3, 4)
        or math.prod(shape[2:]) != x.width
    ):
        raise Unplannable(f"the reshape {node.name}")
    context.give(node.outputs[0], replace(x, heads=heads))


@handles("", "RMSNormalization", "LayerNormalization")
def norm(context: Context, node: Node) -> None:
    x = context.tokens(node.inputs[0], in_heads=True)
    out = context.new(x.width)
    if node.attributes.get("axis", -1) not in (-1, 2 if x.heads == 1 else 3):
        raise Unplannable(f"the axis of {node.name}")
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    if has_bias and node.op_type != "LayerNormalization":
        raise Unplannable(f"the inputs of {node.name}")
    step = Norm[Argument](
        kind=LAYER if node.op_type == "LayerNormalization" else RMS,
        source=x.place,
        stride=x.stride,
        scale=context.vector(node.inputs[1], x.width // x.heads),
        bias=context.vector(node.inputs[2], x.width // x.heads) if has_bias else 0,
        epsilon=float(node.attributes.get("epsilon", 1e-5)),
        columns=x.width // x.heads,
        heads=x.heads,
        out=out.place,
    )
    context.emit(step, [x.buffer], [out.buffer])
    if x.heads > 1 and step.kind == RMS and (np.asarray(context.folder.constant(node.inputs[1])) == 1).all():
        context.unscaled.add(out.buffer)
    context.give(node.outputs[0], replace(out, heads=x.heads))


@handles("", "Sigmoid", "Gelu", "Relu", "Tanh")
def activation(context: Context, node: Node) -> None:
    if of_gate(context, node):
        return
    tanh = node.attributes.get("approximate", "none") == "tanh"
    kind = {"Sigmoid": SIGMOID, "Relu": RELU, "Tanh": TANH, "Gelu": GELU_TANH if tanh else GELU}[node.op_type]
    context.give(node.outputs[0], Pending(kind, context.tokens(node.inputs[0], in_heads=True)))


@handles("", "Mul")
def mul(context: Context, node: Node) -> None:
    if scaled(context, node) or weighted(context, node) or of_gate(context, node):
        return
    constant = [context.folder.is_constant(name) for name in node.inputs]
    if any(constant):
        _scale(context, node, node.inputs[constant.index(False)], node.inputs[constant.index(True)])
        return
    if masked(context, node):
        return
    values = [context.values.get(name) for name in node.inputs]
    for pending, other in (values, values[::-1]):
        if not isinstance(pending, Pending):
            continue
        if pending.kind == RELU and other is pending:
            context.give(node.outputs[0], Pending(RELU2, pending.source))
            return
        if pending.kind == SIGMOID and other is pending.source:
            context.give(node.outputs[0], Pending(SILU, pending.source))
            return
        if pending.kind == SIGMOID and pending.source.width == 1 and isinstance(other, Tokens) and other.width > 1:
            _share(context, node, pending, other)
            return
        if isinstance(other, Tokens) and other.rotation is None:
            context.give(node.outputs[0], context.activate(pending, other))
            return
    if not gated(context, node):
        raise Unplannable(f"the product {node.name}")


def _share(context: Context, node: Node, pending: Pending, x: Tokens) -> None:
    """A value times a number of each token, a logistic function's."""
    share, out = context.activate(pending, None), context.new(x.width)
    if x.heads != 1 or x.rotation is not None or not share.whole:
        raise Unplannable(f"the product {node.name}")
    step = Combine[Argument](
        source=x.place, stride=x.stride, weights=share.place, count=1, columns=x.width, out=out.place
    )  # fmt: skip
    context.emit(step, [x.buffer, share.buffer], [out.buffer])
    context.give(node.outputs[0], out)


def _scale(context: Context, node: Node, value: str, factor: str) -> None:
    x, number = context.tokens(value), context.folder.constant(factor)
    if _scales_norm(context, node, x, number):
        return
    if number.size != 1 or number.ndim > 3:
        raise Unplannable(f"the constant product {node.name}")
    out = context.new(x.width)
    step = Scale[Argument](
        source=x.place, stride=x.stride, factor=float(number.reshape(-1)[0]), columns=x.width, out=out.place
    )  # fmt: skip
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)


def _scales_norm(context: Context, node: Node, x: Tokens, numbers: np.ndarray) -> bool:
    """Let a norm of heads that has no scales of its own take these, others for each head; False where it is none."""
    last = context.steps[-1]
    norm = isinstance(last.step, Norm) and last.writes == [x.buffer] and x.buffer in context.unscaled and x.whole
    if not norm or numbers.shape != (x.width,) or context.needed(x.buffer):
        return False
    assert isinstance(last.step, Norm)
    last.step.scale, last.step.scale_stride = context.stored(numbers.astype(np.float32)), last.step.columns
    context.give(node.outputs[0], x)
    context.unscaled.discard(x.buffer)
    return True


@handles("", "Split")
def split(context: Context, node: Node) -> None:
    x, sizes = context.tokens(node.inputs[0]), context.folder.constant(node.inputs[1])
    parts = sizes.reshape(-1).tolist()
    fits = len(parts) == len(node.outputs) and sum(parts) == x.width and min(parts, default=0) >= 1
    if node.attributes.get("axis", 0) not in (-1, 2) or not fits:
        raise Unplannable(f"the split {node.name}")
    column = x.column
    for name, size in zip(node.outputs, parts):
        context.give(name, Tokens(x.buffer, size, x.stride, column))
        column += size
