"""What a model folder has of adapters, checked against its graph."""

from __future__ import annotations

from collections.abc import Sequence

from export.adapters.bottleneck import bottleneck_sites, with_bottlenecks
from export.adapters.sites import PRODUCT, Site, adapter_sites
from export.adapters.store import Adapter, adapter_names, check_fits, read_adapter
from export.artefacts.graph import Graph
from export.contract.errors import InputError
from export.files.access import read_json
from export.graph.archs import is_supported, model_spec


def folder_sites(graph: Graph) -> tuple[Site, ...]:
    """The products of a folder's graph; a head that shares the embedding's matrix has the head's own name."""
    aliases: dict[str, str] = {}
    try:
        config = read_json(graph.folder / "config.json")
        if is_supported(config.get("model_type")):
            spec = model_spec(config)
            if spec.tied_head and spec.head:
                aliases[spec.embedding] = spec.head
    except InputError:
        pass  # a folder without a config of ours has the names of its weights alone
    return adapter_sites(graph, aliases)


def folder_adapters(graph: Graph, names: Sequence[str] | None = None) -> tuple[Adapter, ...]:
    """These adapters of the folder that a graph was read from; None: all of them.

    Raises InputError where one is not there, broken, hostile or for another graph.
    """
    wanted = adapter_names(graph.folder) if names is None else tuple(dict.fromkeys(names))
    found = tuple(read_adapter(graph.folder, name) for name in wanted)
    if found:
        sites = (*folder_sites(graph), *bottleneck_sites(graph))
        for adapter in found:
            check_fits(adapter, sites, graph.folder)
    return found


def adapted_graph(graph: Graph, adapters: Sequence[Adapter]) -> tuple[Graph, tuple[Site, ...]]:
    """The graph with a place for each term of these adapters of its folder, and all sites of it."""
    if not adapters:
        return graph, ()
    terms = [pair for one in adapters for pair in one.terms.items()]
    wanted = {(term.place, module) for module, term in terms if term.place != PRODUCT}
    products = folder_sites(graph)
    placed, sites = with_bottlenecks(graph, wanted)
    return placed, (*products, *sites)
