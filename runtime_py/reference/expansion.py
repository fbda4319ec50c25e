"""Formats that a runtime has no kernel for become codebooks when a graph is loaded: exactly the same weights.

before  a product with a stored matrix, such as TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes, codebook, scale), the codes as export/contract/formats gives them (as_codebook)

The file stays small; in memory and at every token such a matrix costs the bits of those codes, mostly 8 a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from export.artefacts.reader import Graph, Node
from export.contract.formats.codebook import CODEBOOK_MATMUL

_COMPUTED = np.empty(0, np.float32)  # in place of a part that other nodes make


def expand_products(graph: Graph, keep: Callable[[Node], bool] = lambda node: False) -> Graph:
    """The graph with codebooks alone, but for the products to keep; itself when there is nothing to do."""
    expanded = {n.name for n in graph.nodes if n.is_product and n.op_type != CODEBOOK_MATMUL and not keep(n)}
    if not expanded:
        return graph
    weights, nodes = dict(graph.weights), []
    for node in graph.nodes:
        if node.name not in expanded:
            nodes.append(node)
            continue
        layout = node.matrix_layout()
        given = dict(zip(layout.parts(), node.inputs[1:]))
        codebook, inputs = layout.codebook_layout(), [node.inputs[0]]
        arrays = [graph.weights.get(name, _COMPUTED) for name in given.values()]
        for part in codebook.parts():
            inputs.append(given[part] if part in layout.KEPT else f"{given['codes']}.expanded.{part}")
            if part not in layout.KEPT:
                weights[inputs[-1]] = np.ascontiguousarray(layout.codebook_part(part, *arrays))
        for name in given.values():  # gone, unless another node reads them
            if name not in inputs:
                weights.pop(name, None)
        nodes.append(replace(node, op_type=CODEBOOK_MATMUL, inputs=tuple(inputs), attributes=codebook.attributes()))
    return replace(graph, nodes=tuple(nodes), weights=weights)
