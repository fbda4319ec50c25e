"""Vector and trellis codes become 8-bit codes when a graph is loaded: exactly the same weights, which any kernel takes.

before  VectorCodebookMatMul or TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes of 8 bits, -128..127, scale)

The file stays small; in memory and at every token such a matrix costs 8 bits a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from export.artefacts.reader import Graph, Node
from export.contract.formats.codebook import CODEBOOK_MATMUL


def expand_compact(graph: Graph, keep: Callable[[Node], bool] = lambda node: False) -> Graph:
    """The graph without such nodes but those to keep; itself when there is nothing to do."""
    expanded = {node.name for node in graph.nodes if node.is_compact and not keep(node)}
    if not expanded:
        return graph
    weights, nodes = dict(graph.weights), []
    for node in graph.nodes:
        if node.name not in expanded:
            nodes.append(node)
            continue
        codes, codebook = (weights.pop(name, graph.weights[name]) for name in node.inputs[1:3])
        layout = node.compact_layout().widened()
        wide = node.compact_layout().expanded(codes, codebook)
        names = tuple(f"{name}.expanded" for name in node.inputs[1:3])
        book = np.broadcast_to(np.arange(-128, 128, dtype=np.int8), layout.codebook_shape)
        weights |= {names[0]: wide, names[1]: np.ascontiguousarray(book)}
        inputs = (node.inputs[0], *names, node.inputs[3])
        nodes.append(replace(node, op_type=CODEBOOK_MATMUL, inputs=inputs, attributes=layout.attributes()))
    return replace(graph, nodes=tuple(nodes), weights=weights)
