"""Tasks whose adapters a model folder has (`athena-export adapter add`): their ranks and bytes as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from export.adapters.folder import folder_adapters, folder_sites
from export.adapters.store import Factors
from export.artefacts.graph import Graph
from hw_model.claims.tasks import Task


def resolved(graph: Graph, tasks: Sequence[Task]) -> list[Task]:
    """The tasks, those of rank 0 with the terms of the folder's adapter of that name.

    Raises InputError where there is none, or one that does not fit the graph.
    """
    names = [task.name for task in tasks if not task.rank]
    if not names:
        return list(tasks)
    sites = folder_sites(graph)
    found = {adapter.name: adapter for adapter in folder_adapters(graph, names)}
    return [
        task if task.rank else replace(task, terms={
            site.node: _sizes(found[task.name].terms[site.module])
            for site in sites if site.module in found[task.name].terms
        }) for task in tasks
    ]  # fmt: skip


def _sizes(term: Factors) -> tuple[int, int, int]:
    """Rank, and bytes of a and of b with their scales."""
    scales = [part.nbytes for part in term.scales] if term.scales else [0, 0]
    return term.rank, term.a.nbytes + scales[0], term.b.nbytes + scales[1]
