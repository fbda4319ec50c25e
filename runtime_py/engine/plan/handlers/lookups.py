"""Lookups: rows of embeddings and position tables, columns in another order."""

from __future__ import annotations

import numpy as np

from export.artefacts.graph import Node
from export.contract.formats.codebook import CODEBOOK_GATHER, DOMAIN
from export.contract.formats.groups import GROUP_GATHER
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.experts import biases_of_picked
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import counts_positions
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.lookups import Embed, EmbedDense, EmbedGroups, Reorder


def _ids(context: Context, name: str) -> External:
    if name in context.indices:
        return External(name)
    if not context.counted_positions or not counts_positions(context.folder, name):
        raise Unplannable(f"a lookup by {name}")
    return External("position_ids")


@handles(DOMAIN, CODEBOOK_GATHER)
def codebook_gather(context: Context, node: Node) -> None:
    layout, out = node.layout(), context.new(node.layout().K)
    address, _ = context.record(node, layout, node.inputs[1:])
    step = Embed[Argument](
        ids=_ids(context, node.inputs[0]),
        matrix=address,
        groups=layout.groups,
        group_size=layout.columns_per_group,
        columns=layout.K,
        out=out.place,
    )
    context.emit(step, [], [out.buffer])
    context.give(node.outputs[0], out)


@handles(DOMAIN, GROUP_GATHER)
def group_gather(context: Context, node: Node) -> None:
    layout = node.matrix_layout()
    out = context.new(layout.K)
    address, matrix = context.group_matrix(node, node.inputs[1:])
    step = EmbedGroups[Argument](
        ids=_ids(context, node.inputs[0]),
        matrix=address,
        group=matrix.group_columns,
        scale_bytes=matrix.scale_bytes,
        columns=layout.K,
        out=out.place,
    )
    context.emit(step, [], [out.buffer])
    context.give(node.outputs[0], out)


@handles("", "Gather")
def gather(context: Context, node: Node) -> None:
    if biases_of_picked(context, node):
        return
    if node.inputs[0] in context.values:
        _reorder(context, node)
        return
    if node.inputs[0] in context.halves:
        raise Unplannable(f"the lookup {node.name} in float16")
    table = context.folder.constant(node.inputs[0])
    if table.ndim != 2 or node.attributes.get("axis", 0) != 0 or table.dtype not in (np.float16, np.float32):
        raise Unplannable(f"the lookup {node.name}")
    out = context.new(table.shape[1])
    step = EmbedDense[Argument](
        ids=_ids(context, node.inputs[1]),
        table=context.stored(table),
        item_bytes=table.itemsize,
        columns=table.shape[1],
        out=out.place,
    )
    context.emit(step, [], [out.buffer])
    give = context.give_half if table.dtype == np.float16 else context.give
    give(node.outputs[0], out)


def _reorder(context: Context, node: Node) -> None:
    """Columns of a value in another order."""
    x, order = context.tokens(node.inputs[0]), context.folder.constant(node.inputs[1])
    whole = order.ndim == 1 and sorted(order.tolist()) == list(range(x.width))
    if node.attributes.get("axis", 0) not in (-1, 2) or not whole:
        raise Unplannable(f"the lookup {node.name}")
    address = context.stored(np.ascontiguousarray(order, np.int64))
    out = context.new(x.width)
    step = Reorder[Argument](source=x.place, stride=x.stride, order=address, columns=x.width, out=out.place)
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)
