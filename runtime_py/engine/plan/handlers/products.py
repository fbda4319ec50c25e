"""Products: stored matrices, and the biases and residual sums that are fused into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from export.artefacts.reader import sparse_weights
from export.contract.formats.codebook import CODEBOOK_MATMUL, DOMAIN, CodebookLayout
from export.contract.formats.groups import GROUP_MATMUL
from export.contract.formats.trellis import TRELLIS_MATMUL, TrellisLayout
from export.contract.sparse import SPARSE_MATMUL
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.experts import biased_ranks, with_biases, with_floor
from runtime_py.engine.plan.handlers.gates import of_gate
from runtime_py.engine.plan.placement import Argument, Buffer
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Tokens, stored_rows
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.delta_net import PLAIN, CausalConvolution
from runtime_py.engine.steps.elementwise import Add
from runtime_py.engine.steps.experts import ExpertMatMul
from runtime_py.engine.steps.products import Dense, Grouped, GroupMatMul, MatMul, Product, Sparse

_WITH_BIAS = (MatMul, GroupMatMul, Grouped, Dense)


@handles(DOMAIN, CODEBOOK_MATMUL)
def codebook_matmul(context: Context, node: Node) -> None:
    layout = node.layout()
    if layout.groups == 1:
        _code_product(context, node, layout)
    else:
        _grouped_product(context, node, layout)


@handles(DOMAIN, TRELLIS_MATMUL)
def trellis_matmul(context: Context, node: Node) -> None:
    layout = node.matrix_layout()
    assert isinstance(layout, TrellisLayout)
    _code_product(context, node, layout)


@handles(DOMAIN, GROUP_MATMUL)
def group_matmul(context: Context, node: Node) -> None:
    layout = node.matrix_layout()
    x = _input(context, node, layout.K)
    address, matrix = context.group_matrix(node, node.inputs[1:])
    out = context.new(layout.N)
    context.widest = max(context.widest, layout.K)
    q = context.as_int8(x, matrix.group_columns)
    step = GroupMatMul[Argument](
        matrix=address,
        width=matrix.width,
        quant=q.quant,
        scales=q.scales,
        high=q.high,
        group=q.group,
        starts=q.starts,
        shares=q.shares,
        out=out.place,
        rows=layout.N,
        row_bytes=matrix.row_bytes,
    )
    context.emit(step, [q.buffer], [out.buffer])
    context.give(node.outputs[0], out)


def _input(context: Context, node: Node, columns: int) -> Tokens:
    x = context.tokens(node.inputs[0])
    if x.width != columns:
        raise Unplannable(f"the width of {node.inputs[0]}")
    return x


def _code_product(context: Context, node: Node, layout: CodebookLayout | TrellisLayout) -> None:
    x = _input(context, node, layout.K)
    address, width = context.record(node, layout, node.inputs[1:])
    out = context.new(layout.N)
    context.widest = max(context.widest, layout.K)
    q = context.as_int8(x)
    step = MatMul[Argument](
        matrix=address,
        width=width,
        quant=q.quant,
        sums=q.sums,
        scales=q.scales,
        high=q.high,
        out=out.place,
        rows=layout.N,
        row_bytes=layout.codes_shape[1],
    )
    context.emit(step, [q.buffer], [out.buffer])
    context.give(node.outputs[0], out)


def _grouped_product(context: Context, node: Node, layout: CodebookLayout) -> None:
    x = _input(context, node, layout.K)
    address, _ = context.record(node, layout, node.inputs[1:])
    out = context.new(layout.N)
    context.widest = max(context.widest, layout.K)
    step = Grouped[Argument](
        source=x.place,
        stride=x.stride,
        matrix=address,
        groups=layout.groups,
        group_size=layout.columns_per_group,
        out=out.place,
        rows=layout.N,
    )
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)


@handles("", "MatMul")
def matmul(context: Context, node: Node) -> None:
    """x @ W with W constant: stored as rows [N, K] behind a transpose, else transposed here."""
    if not context.folder.is_constant(node.inputs[1]):
        raise Unplannable(f"the product {node.name} of two computed values")
    x = context.tokens(node.inputs[0])
    weights = stored_rows(context.folder, context.graph, node.inputs[1])
    if weights.ndim != 2 or weights.shape[1] != x.width:
        raise Unplannable(f"the weights of {node.name}")
    context.bytes_per_token += weights.nbytes
    out = context.new(weights.shape[0])
    step = Dense[Argument](
        source=x.place,
        stride=x.stride,
        weights=context.stored(weights),
        item_bytes=weights.itemsize,
        columns=x.width,
        out=out.place,
        rows=weights.shape[0],
    )
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)


@handles(DOMAIN, SPARSE_MATMUL)
def sparse_matmul(context: Context, node: Node) -> None:
    layout = node.sparse_layout()
    x = _input(context, node, layout.K)
    places, stored = sparse_weights(node, context.graph.weights)
    rows, columns = np.divmod(places, layout.K)
    parts = (
        np.searchsorted(rows, np.arange(layout.N + 1)),
        columns.astype(np.int32),
        stored.astype(np.float32),
    )
    context.bytes_per_token += sum(part.nbytes for part in parts)
    starts, columns_at, weights = (context.stored(part) for part in parts)
    out = context.new(layout.N)
    step = Sparse[Argument](
        source=x.place,
        stride=x.stride,
        starts=starts,
        columns=columns_at,
        weights=weights,
        out=out.place,
        rows=layout.N,
    )
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)


@handles("", "Add")
def add(context: Context, node: Node) -> None:
    if of_gate(context, node) or biased_ranks(context, node) or with_floor(context, node):
        return
    if with_biases(context, node):
        return
    constant = [context.folder.is_constant(name) for name in node.inputs]
    if any(constant):
        _add_bias(context, node, node.inputs[constant.index(False)], node.inputs[constant.index(True)])
        return
    a, b = (context.tokens(name, in_heads=True) for name in node.inputs)
    if (a.width, a.heads) != (b.width, b.heads):
        raise Unplannable(f"the sum {node.name} of different widths")
    for product, other in ((b, a), (a, b)):
        last = context.steps[-1]
        if (
            isinstance(last.step, Product)
            and not isinstance(last.step, ExpertMatMul)
            and last.writes == [product.buffer]
            and not last.step.accumulate  # it holds only a part of the product then
            and product.whole
            and other.whole
            and other.buffer not in (product.buffer, *last.reads)
            and not context.needed(product.buffer)
            and not context.needed(other.buffer)  # nobody reads it later: it may be overwritten
        ):
            last.step.out, last.step.accumulate = other.place, 1
            last.writes, last.reads = [other.buffer], [*last.reads, other.buffer]
            context.quantized.pop(other.buffer, None)
            context.give(node.outputs[0], other)
            return
    _sum(context, node, a, b.place, b.stride, [a.buffer, b.buffer])


def _sum(context: Context, node: Node, a: Tokens, b: Argument, b_stride: int, reads: list[Buffer]) -> None:
    """A step of its own for a + b; a stride of 0 adds the same row to every token."""
    out = context.new(a.width)
    step = Add[Argument](a=a.place, a_stride=a.stride, b=b, b_stride=b_stride, columns=a.width, out=out.place)
    context.emit(step, reads, [out.buffer])
    context.give(node.outputs[0], replace(out, heads=a.heads))


def _add_bias(context: Context, node: Node, value: str, bias: str) -> None:
    x, last = context.tokens(value), context.steps[-1]
    vector = context.folder.constant(bias)
    if vector.size != x.width or vector.ndim not in (1, 2, 3) or vector.shape[-1] != x.width:
        raise Unplannable(f"the constant added by {node.name}")
    step = last.step
    able = isinstance(step, _WITH_BIAS) or (isinstance(step, CausalConvolution) and step.kind == PLAIN)
    made = able and last.writes == [x.buffer] and x.whole and not getattr(step, "bias", 0)
    if not made or context.needed(x.buffer):
        _sum(context, node, x, context.vector(bias, x.width), 0, [x.buffer])
        return
    assert isinstance(step, Product | CausalConvolution)
    step.bias = context.vector(bias, x.width)
    context.quantized.pop(x.buffer, None)
    context.give(node.outputs[0], x)
