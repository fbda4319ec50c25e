"""Products of other weight formats become CodebookMatMul, exactly, for which other runtimes have fast kernels.

before  a product with a stored matrix, such as TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes, codebook, scale), the codes as export/contract/formats gives them (as_codebook)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from export.contract.formats import PRODUCTS, Layout, operator_layout
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.lowering.stored import lazy


def run(model: ir.Model) -> int:
    """Replace every such product in place; how many there were. Codes are made when the model is saved."""
    graph, count = model.graph, 0
    made: dict[Any, list[ir.Value | None]] = {}  # a matrix that several layers share is made once
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in PRODUCTS - {CODEBOOK_MATMUL}:
            _replace(graph, node, made)
            count += 1
    return count


def _replace(graph: ir.Graph, node: ir.Node, made: dict[Any, list[ir.Value | None]]) -> None:
    layout = operator_layout(node.op_type, {name: value.as_int() for name, value in node.attributes.items()})
    given = dict(zip(layout.parts(), node.inputs[1:]))
    codebook, key = layout.codebook_layout(), (layout, *given.values())
    if key not in made:
        parts: list[ir.Value | None] = []
        for part, shape in codebook.parts().items():
            if part in layout.KEPT:
                parts.append(given[part])
                continue
            make = partial(_made, layout, part, list(given.values()))
            name = f"expanded.{len(made)}.{part}"
            parts.append(lazy(graph, name, np.dtype(shape.dtypes[-1]), shape.shape, make))
        made[key] = parts
    inputs = [node.inputs[0], *made[key]]
    fresh = ir.node(CODEBOOK_MATMUL, inputs, codebook.attributes(), domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)


def _made(layout: Layout, part: str, given: list[ir.Value | None]) -> np.ndarray:
    """A part of the codebook from the stored parts; one that other nodes compute is among those that stay."""
    stored = [None if value is None else value.const_value for value in given]
    return layout.codebook_part(part, *(np.empty(0) if array is None else array.numpy() for array in stored))
