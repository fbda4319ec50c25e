"""Where an adapter may add a term: at products of float activations with one stored matrix, and at ends of blocks.

The end of a block of an encoder that norms behind its residual sums (BERT, ALBERT) is d = x @ W^T + bias, s = d + r,
y = norm(s). Terms of a bottleneck there read and change, by their place,

    output     d + f(d)             (Houlsby et al., arXiv 1902.00751)
    normed     s + f(norm(s))       (Pfeiffer et al., arXiv 2005.00247; `seq_bn` of the package `adapters`)
    residual   d + f(r)             (He et al., arXiv 2110.04366; `par_bn`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from export.artefacts.graph import Graph, Node

PRODUCT = "product"
OUTPUT, NORMED, RESIDUAL = PLACES = ("output", "normed", "residual")
_STATES = "last_hidden_state"  # of an encoder: what comes behind is computed apart
_SUFFIXES = re.compile(r"\.(codes|weight)$")


@dataclass(frozen=True)
class Site:
    """A node whose output takes a term: a product y [.., rows] = x [.., columns] @ W^T, or one made for bottlenecks."""

    node: str
    module: str  # of the matrix, as the source's checkpoint names it
    rows: int
    columns: int
    place: str = PRODUCT


def adapter_sites(graph: Graph, aliases: Mapping[str, str] | None = None) -> tuple[Site, ...]:
    """The sites of a graph in its order; a matrix that several layers share has one for each.

    aliases: modules by the name that the graph has for their matrix (a head that shares the embedding's).
    """
    makers = {name: node for node in graph.nodes for name in node.outputs}
    found = []
    for node in graph.nodes:
        read = _matrix(graph, node, makers)
        if read is not None:
            module, rows, columns = read
            found.append(Site(node.name, (aliases or {}).get(module, module), rows, columns))
        if _STATES in node.outputs:
            break
    return tuple(found)


def _matrix(graph: Graph, node: Node, makers: Mapping[str, Node]) -> tuple[str, int, int] | None:
    if node.is_product and len(node.inputs) > 1:
        name = node.inputs[1]
        if name not in graph.weights or not _SUFFIXES.search(name):
            return None
        layout = node.matrix_layout()
        return _SUFFIXES.sub("", name), int(layout.N), int(layout.K)  # type: ignore[attr-defined]
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    name = node.inputs[1]
    for op_type in ("Transpose", "Cast"):
        maker = makers.get(name)
        if maker is not None and maker.op_type == op_type:
            name = maker.inputs[0]
        elif op_type == "Transpose":
            return None
    weight = graph.weights.get(name)
    if weight is None or weight.ndim != 2 or not name.endswith(".weight"):
        return None  # low-rank factors of the matrix itself, and what is no layer
    return _SUFFIXES.sub("", name), weight.shape[0], weight.shape[1]


@dataclass(frozen=True)
class BlockEnd:
    """A product with its bias, the residual sum behind it and the norm of that: names of nodes and values."""

    module: str
    width: int
    output: str  # d
    residual: str  # r
    add: str  # the node that sums them
    sum: str  # s
    norm: Node


def block_ends(graph: Graph) -> tuple[BlockEnd, ...]:
    """Those of a graph in its order, up to the states of an encoder. A matrix that several layers share has several."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    products = {site.node: site for site in adapter_sites(graph)}
    found = []
    for node in graph.nodes:
        site = products.get(node.name)
        if site is not None:
            end = _end(graph, node, site, readers)
            found += [end] if end is not None else []
    return tuple(found)


def _end(graph: Graph, product: Node, site: Site, readers: Mapping[str, list[Node]]) -> BlockEnd | None:
    output, node = product.outputs[0], _only(readers, product.outputs[0], "Add")
    if node is not None and any(name in graph.weights for name in node.inputs):
        output = node.outputs[0]
        node = _only(readers, output, "Add")
    if node is None or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return None
    residual = node.inputs[1] if node.inputs[0] == output else node.inputs[0]
    norm = _only(readers, node.outputs[0], "LayerNormalization")
    if residual in graph.weights or norm is None or norm.inputs[0] != node.outputs[0]:
        return None
    return BlockEnd(site.module, site.rows, output, residual, node.name, node.outputs[0], norm)


def _only(readers: Mapping[str, list[Node]], name: str, op_type: str) -> Node | None:
    """The node that reads a value, where one alone does and it is of this type."""
    found = readers.get(name, [])
    if len(found) != 1 or found[0].op_type != op_type or found[0].domain not in ("", "ai.onnx"):
        return None
    return found[0]
