"""Puts nodes for bottlenecks into a graph, for the runtime alone: files never hold them.

AddBottleneck(y, x) of the domain `ai.athena.runtime` gives y plus the term of the adapter at work, read from x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from export.adapters.sites import NORMED, OUTPUT, PLACES, RESIDUAL, BlockEnd, Site, block_ends
from export.artefacts.graph import RUNTIME_DOMAIN, Graph, Node
from export.contract.errors import InputError

ADD_BOTTLENECK = "AddBottleneck"


def bottleneck_sites(graph: Graph) -> tuple[Site, ...]:
    """The sites that with_bottlenecks() would give a graph at every place."""
    return tuple(_site(end, place) for end in block_ends(graph) for place in PLACES)


def with_bottlenecks(graph: Graph, wanted: Iterable[tuple[str, str]]) -> tuple[Graph, tuple[Site, ...]]:
    """The graph with a node for each (place, module) that is wanted, and their sites; itself where nothing is.

    A term that reads the norm of a sum reads a copy of the norm, which is made again behind the term. Raises InputError
    on a graph that has the names of what is put in.
    """
    asked = set(wanted)
    before: dict[str, list[Node]] = {}
    changed: dict[str, Node] = {}
    sites: list[Site] = []
    nodes = {node.name: node for node in graph.nodes}
    for end in block_ends(graph) if asked else ():
        value = end.output
        for place in (OUTPUT, RESIDUAL):  # at most one of them adds something
            if (place, end.module) in asked:
                sites.append(_site(end, place))
                read = end.output if place == OUTPUT else end.residual
                made = f"{end.output}.{place}_adapter"
                before.setdefault(end.add, []).append(_added(sites[-1].node, value, read, made))
                value = made
        if value != end.output:
            node = nodes[end.add]
            changed[end.add] = replace(node, inputs=tuple(value if n == end.output else n for n in node.inputs))
        if (NORMED, end.module) in asked:
            sites.append(_site(end, NORMED))
            normed, made = f"{end.sum}.normed", f"{end.sum}.{NORMED}_adapter"
            first = replace(end.norm, name=f"{end.norm.name}/before_adapter", outputs=(normed,))
            before[end.norm.name] = [first, _added(sites[-1].node, end.sum, normed, made)]
            changed[end.norm.name] = replace(end.norm, inputs=(made, *end.norm.inputs[1:]))
    if not sites:
        return graph, ()
    _check_names(graph, [node for added in before.values() for node in added])
    found: list[Node] = []
    for node in graph.nodes:
        found += [*before.get(node.name, ()), changed.get(node.name, node)]
    return replace(graph, nodes=tuple(found)), tuple(sites)


def _check_names(graph: Graph, added: list[Node]) -> None:
    names = {*graph.weights, *(info.name for info in graph.inputs)}
    for node in graph.nodes:
        names |= {node.name, *node.outputs}
    for node in added:
        for name in (node.name, *node.outputs):
            if name in names:
                raise InputError(f"model.onnx: has the name {name[:200]!r}, which is an adapter's here")
            names.add(name)


def _site(end: BlockEnd, place: str) -> Site:
    at = end.norm.name if place == NORMED else end.add
    return Site(f"{at}/{place}_adapter", end.module, end.width, end.width, place)


def _added(name: str, value: str, read: str, made: str) -> Node:
    return Node(ADD_BOTTLENECK, RUNTIME_DOMAIN, name, (value, read), (made,))
