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
from export.contract.formats.codebook import CODEBOOK_MATMUL, CodebookLayout
from export.lowering.stored import Kept, lazy


def run(model: ir.Model) -> tuple[int, list[Kept]]:
    """Replace every such product in place; how many there were, and those that are no codes of a codebook.

    Codes are made when the model is saved.
    """
    graph, count, kept = model.graph, 0, list[Kept]()
    made: dict[Any, list[ir.Value | None]] = {}  # a matrix that several layers share is made once
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in PRODUCTS - {CODEBOOK_MATMUL}:
            layout = operator_layout(node.op_type, {name: value.as_int() for name, value in node.attributes.items()})
            try:
                codebook = layout.codebook_layout()
            except ValueError as error:
                kept.append(Kept(str(node.name), node.op_type, str(error)))
                continue
            _replace(graph, node, layout, codebook, made)
            count += 1
    return count, kept


def _replace(
    graph: ir.Graph, node: ir.Node, layout: Layout, codebook: CodebookLayout, made: dict[Any, list[ir.Value | None]]
) -> None:
    given = dict(zip(layout.parts(), node.inputs[1:]))
    key = (layout, *given.values())
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
