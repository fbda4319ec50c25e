"""Formats that a runtime has no kernel for become codebooks when a graph is loaded: exactly the same weights.

before  a product with a stored matrix, such as TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes, codebook, scale), the codes as export/contract/formats gives them (as_codebook)

The file stays small; in memory and at every token such a matrix costs the bits of those codes, mostly 8 a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from export.artefacts.graph import Graph, Node, fresh
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.contract.formats.groups import GROUP_MATMUL

_KNOWN = (CODEBOOK_MATMUL, GROUP_MATMUL)  # what both machines take as it is
_COMPUTED = np.empty(0, np.float32)  # in place of a part that other nodes make


def expand_products(graph: Graph, keep: Callable[[Node, Graph], bool] = lambda node, graph: False) -> Graph:
    """The graph with codebooks and group scales alone, and the products to keep; itself where nothing is to do."""
    expanded = {n.name for n in graph.nodes if n.is_product and n.op_type not in _KNOWN and not keep(n, graph)}
    if not expanded:
        return graph
    weights, nodes, taken = dict(graph.weights), [], graph.names()
    made: dict[tuple[object, ...], list[str]] = {}  # a matrix that several layers share is expanded once
    for node in graph.nodes:
        if node.name not in expanded:
            nodes.append(node)
            continue
        layout = node.matrix_layout()
        given = dict(zip(layout.parts(), node.inputs[1:]))
        codebook, inputs = layout.codebook_layout(), [node.inputs[0]]
        key = (layout, *given.values())
        if key not in made:
            arrays = [graph.weights.get(name, _COMPUTED) for name in given.values()]
            made[key] = [
                given[p] if p in layout.KEPT else fresh(f"#{len(made)}.expanded.{p}", taken) for p in codebook.parts()
            ]
            for part, name in zip(codebook.parts(), made[key]):
                if part not in layout.KEPT:
                    weights[name] = np.ascontiguousarray(layout.codebook_part(part, *arrays))
        inputs += made[key]
        nodes.append(replace(node, op_type=CODEBOOK_MATMUL, inputs=tuple(inputs), attributes=codebook.attributes()))
    read = {name for node in nodes for name in node.inputs}
    gone = {name for node in graph.nodes if node.name in expanded for name in node.inputs[1:]} - read
    return replace(graph, nodes=tuple(nodes), weights={n: array for n, array in weights.items() if n not in gone})
