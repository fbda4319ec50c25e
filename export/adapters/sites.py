"""Which nodes of a graph an adapter may add a term to: products of float activations with one stored matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from export.artefacts.reader import Graph, Node

_STATES = "last_hidden_state"  # of an encoder: what comes behind is computed apart
_SUFFIXES = re.compile(r"\.(codes|weight)$")


@dataclass(frozen=True)
class Site:
    """A product node: y [.., rows] = x [.., columns] @ W^T."""

    node: str
    module: str  # of the matrix, as the source's checkpoint names it
    rows: int
    columns: int


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
