"""Products for the planner: stored matrices, and the biases and residual sums that are fused into them.

Each function plans one node and raises Unplannable where there is no step for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.artefacts.reader import Node, sparse_weights
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.trellis import TrellisLayout
from runtime_py.engine.kernels.matrix import WIDTH, is_fast
from runtime_py.engine.plan.plan import Argument, Buffer
from runtime_py.engine.plan.values import Tokens, Unplannable, stored_rows
from runtime_py.engine.steps import table as op
from runtime_py.system.guard_pages import settled

if TYPE_CHECKING:
    from runtime_py.engine.plan.planner import Planner


def codebook_matmul(planner: Planner, node: Node) -> None:
    _product(planner, node, node.layout())


def trellis_matmul(planner: Planner, node: Node) -> None:
    layout = node.compact_layout()
    assert isinstance(layout, TrellisLayout)
    _product(planner, node, layout)


def _product(planner: Planner, node: Node, layout: CodebookLayout | TrellisLayout) -> None:
    x = planner.tokens(node.inputs[0])
    if x.width != layout.K:
        raise Unplannable(f"the width of {node.inputs[0]}")
    address, record = planner.record(node, layout, node.inputs[1:])
    out = planner.new(layout.N)
    planner.widest = max(planner.widest, layout.K)
    if isinstance(layout, TrellisLayout) or is_fast(layout):
        q = planner.as_int8(x)
        arguments: dict[str, Argument] = {
            "matrix": address,
            "width": int(record[WIDTH]),
            **q.arguments(),
            "out": out.place,
            "rows": layout.N,
            "row_bytes": layout.codes_shape[1],
        }
        planner.emit(op.MATMUL, arguments, [q.buffer], [out.buffer])
    else:
        arguments = {
            "source": x.place,
            "stride": x.stride,
            "matrix": address,
            "groups": layout.groups,
            "group_size": layout.columns_per_group,
            "out": out.place,
            "rows": layout.N,
        }
        planner.emit(op.GROUPED, arguments, [x.buffer], [out.buffer])
    planner.give(node.outputs[0], out)


def matmul(planner: Planner, node: Node) -> None:
    """x @ W with W constant: stored as rows [N, K] behind a transpose, else transposed here."""
    if not planner.folder.is_constant(node.inputs[1]):
        raise Unplannable(f"the product {node.name} of two computed values")
    x = planner.tokens(node.inputs[0])
    weights = stored_rows(planner.folder, planner.graph, node.inputs[1])
    if weights.ndim != 2 or weights.shape[1] != x.width:
        raise Unplannable(f"the weights of {node.name}")
    weights = settled(weights)
    planner.keep.append(weights)
    planner.bytes_per_token += weights.nbytes
    out = planner.new(weights.shape[0])
    arguments: dict[str, Argument] = {
        "source": x.place,
        "stride": x.stride,
        "weights": weights.ctypes.data,
        "item_bytes": weights.itemsize,
        "columns": x.width,
        "out": out.place,
        "rows": weights.shape[0],
    }
    planner.emit(op.DENSE, arguments, [x.buffer], [out.buffer])
    planner.give(node.outputs[0], out)


def sparse_matmul(planner: Planner, node: Node) -> None:
    x, layout = planner.tokens(node.inputs[0]), node.sparse_layout()
    if x.width != layout.K:
        raise Unplannable(f"the width of {node.inputs[0]}")
    places, stored = sparse_weights(node, planner.graph.weights)
    rows, columns = np.divmod(places, layout.K)
    parts = (
        settled(np.searchsorted(rows, np.arange(layout.N + 1))),
        settled(columns.astype(np.int32)),
        settled(stored.astype(np.float32)),
    )
    planner.keep += parts
    planner.bytes_per_token += sum(part.nbytes for part in parts)
    out = planner.new(layout.N)
    arguments: dict[str, Argument] = {
        "source": x.place,
        "stride": x.stride,
        "starts": parts[0].ctypes.data,
        "columns": parts[1].ctypes.data,
        "weights": parts[2].ctypes.data,
        "out": out.place,
        "rows": layout.N,
    }
    planner.emit(op.SPARSE, arguments, [x.buffer], [out.buffer])
    planner.give(node.outputs[0], out)


def add(planner: Planner, node: Node) -> None:
    constant = [planner.folder.is_constant(name) for name in node.inputs]
    if any(constant):
        _add_bias(planner, node, node.inputs[constant.index(False)], node.inputs[constant.index(True)])
        return
    a, b = (planner.tokens(name) for name in node.inputs)
    if a.width != b.width:
        raise Unplannable(f"the sum {node.name} of different widths")
    for product, other in ((b, a), (a, b)):
        step = planner.steps[-1]
        if (
            step.operation in (op.MATMUL, op.RAZOR_MATMUL, op.GROUPED, op.DENSE, op.SPARSE)
            and step.writes == [product.buffer]
            and not step.arguments.get("accumulate")  # it holds only a part of the product then
            and product.whole
            and other.whole
            and other.buffer not in (product.buffer, *step.reads)
            and not planner.needed(product.buffer)
            and not planner.needed(other.buffer)  # nobody reads it later: it may be overwritten
        ):
            step.arguments |= {"out": other.place, "accumulate": 1}
            step.writes, step.reads = [other.buffer], [*step.reads, other.buffer]
            planner.quantized.pop(other.buffer, None)
            planner.give(node.outputs[0], other)
            return
    _sum(planner, node, a, b.place, b.stride, [a.buffer, b.buffer])


def _sum(planner: Planner, node: Node, a: Tokens, b: Argument, b_stride: int, reads: list[Buffer]) -> None:
    """A step of its own for a + b; a stride of 0 adds the same row to every token."""
    out = planner.new(a.width)
    arguments: dict[str, Argument] = {
        "a": a.place,
        "a_stride": a.stride,
        "b": b,
        "b_stride": b_stride,
        "columns": a.width,
        "out": out.place,
    }
    planner.emit(op.ADD, arguments, reads, [out.buffer])
    planner.give(node.outputs[0], out)


def _add_bias(planner: Planner, node: Node, value: str, bias: str) -> None:
    x, step = planner.tokens(value), planner.steps[-1]
    vector = planner.folder.constant(bias)
    if vector.size != x.width or vector.ndim not in (1, 2, 3) or vector.shape[-1] != x.width:
        raise Unplannable(f"the constant added by {node.name}")
    products = (op.MATMUL, op.GROUPED, op.DENSE)
    made = step.operation in products and step.writes == [x.buffer] and x.whole and not step.arguments.get("bias")
    if not made or planner.needed(x.buffer):
        _sum(planner, node, x, planner.vector(bias, x.width), 0, [x.buffer])
        return
    step.arguments["bias"] = planner.vector(bias, x.width)
    planner.quantized.pop(x.buffer, None)
    planner.give(node.outputs[0], x)
