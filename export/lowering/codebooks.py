"""Products of other weight formats become CodebookMatMul, exactly, for which other runtimes have fast kernels.

before  a product with a stored matrix, such as TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes, codebook, scale), the codes as export/contract/formats gives them (as_codebook)
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from export.contract.formats import PRODUCTS, Layout, operator_layout
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.lowering.stored import lazy


def run(model: ir.Model) -> int:
    """Replace every such product in place; how many there were. Codes are made when the model is saved."""
    graph, count = model.graph, 0
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in PRODUCTS - {CODEBOOK_MATMUL}:
            _replace(graph, node)
            count += 1
    return count


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    layout = operator_layout(node.op_type, {name: value.as_int() for name, value in node.attributes.items()})
    given = dict(zip(layout.parts(), node.inputs[1:]))
    codebook, inputs = layout.codebook_layout(), [node.inputs[0]]
    for part, shape in codebook.parts().items():
        if part in layout.KEPT:
            inputs.append(given[part])
            continue
        name, dtype = str(given["codes"].name).removesuffix(".codes"), np.dtype(shape.dtypes[-1])  # type: ignore[union-attr]
        make = partial(_made, layout, part, list(given.values()))
        inputs.append(lazy(graph, f"{name}.expanded_{part}", dtype, shape.shape, make))
    fresh = ir.node(CODEBOOK_MATMUL, inputs, codebook.attributes(), domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)


def _made(layout: Layout, part: str, given: list[ir.Value | None]) -> np.ndarray:
    """A part of the codebook from the stored parts; one that other nodes compute is among those that stay."""
    stored = [None if value is None else value.const_value for value in given]
    return layout.codebook_part(part, *(np.empty(0) if array is None else array.numpy() for array in stored))
