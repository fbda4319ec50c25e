"""Lookups for the planner: rows of embeddings and position tables, columns in another order.

Each function plans one node and raises Unplannable where there is no step for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.artefacts.reader import Node
from runtime_py.engine.plan.plan import Argument, External
from runtime_py.engine.plan.values import Unplannable, counts_positions
from runtime_py.engine.steps import table as op
from runtime_py.system.guard_pages import settled

if TYPE_CHECKING:
    from runtime_py.engine.plan.planner import Planner


def _ids(planner: Planner, name: str) -> External:
    if name in planner.indices:
        return External(name)
    if not planner.counted_positions or not counts_positions(planner.folder, name):
        raise Unplannable(f"a lookup by {name}")
    return External("position_ids")


def codebook_gather(planner: Planner, node: Node) -> None:
    layout, out = node.layout(), planner.new(node.layout().K)
    address, _ = planner.record(node, layout, node.inputs[1:])
    ids = _ids(planner, node.inputs[0])
    arguments: dict[str, Argument] = {
        "ids": ids,
        "matrix": address,
        "groups": layout.groups,
        "group_size": layout.columns_per_group,
        "columns": layout.K,
        "out": out.place,
    }
    planner.emit(op.EMBED, arguments, [], [out.buffer])
    planner.give(node.outputs[0], out)


def gather(planner: Planner, node: Node) -> None:
    if node.inputs[0] in planner.values:
        _reorder(planner, node)
        return
    if node.inputs[0] in planner.halves:
        raise Unplannable(f"the lookup {node.name} in float16")
    table = planner.folder.constant(node.inputs[0])
    if table.ndim != 2 or node.attributes.get("axis", 0) != 0 or table.dtype not in (np.float16, np.float32):
        raise Unplannable(f"the lookup {node.name}")
    table = settled(table)
    planner.keep.append(table)
    out = planner.new(table.shape[1])
    ids = _ids(planner, node.inputs[1])
    arguments: dict[str, Argument] = {
        "ids": ids,
        "table": table.ctypes.data,
        "item_bytes": table.itemsize,
        "columns": table.shape[1],
        "out": out.place,
    }
    planner.emit(op.EMBED_DENSE, arguments, [], [out.buffer])
    give = planner.give_half if table.dtype == np.float16 else planner.give
    give(node.outputs[0], out)


def _reorder(planner: Planner, node: Node) -> None:
    """Columns of a value in another order."""
    x, order = planner.tokens(node.inputs[0]), planner.folder.constant(node.inputs[1])
    whole = order.ndim == 1 and sorted(order.tolist()) == list(range(x.width))
    if node.attributes.get("axis", 0) not in (-1, 2) or not whole:
        raise Unplannable(f"the lookup {node.name}")
    order = settled(np.ascontiguousarray(order, np.int64))
    planner.keep.append(order)
    out = planner.new(x.width)
    arguments: dict[str, Argument] = {
        "source": x.place,
        "stride": x.stride,
        "order": order.ctypes.data,
        "columns": x.width,
        "out": out.place,
    }
    planner.emit(op.REORDER, arguments, [x.buffer], [out.buffer])
    planner.give(node.outputs[0], out)
