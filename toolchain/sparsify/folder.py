"""A model folder whose attention reads a fixed number of keys, from one that reads all: only the graph is another."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from export.artefacts.manifest import read_manifest
from export.artefacts.reader import own_names, read_graph
from export.contract.errors import InputError
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from export.contract.pages import Pages
from export.files.access import MANIFEST, checked_path, write_json
from export.files.foreign import foreign
from export.lowering import sparse_attention
from export.lowering.folder import carry
from export.model_folder import MODEL_FILE

RECORD = "sparse_attention"  # of the manifest


def check_source(source: Path) -> int:
    """How many attention nodes with a cache a folder has. Raises InputError where none can become sparse."""
    graph = read_graph(source)
    if read_manifest(source).get("lowering"):
        raise InputError(f"{source}: was lowered for another runtime; sparsify the folder it was made from, then lower")
    if any(node.op_type == SPARSE_ATTENTION for node in graph.nodes):
        raise InputError(f"{source}: its attention is sparse already; start from the folder it was made from")
    count = sum(node.op_type == "Attention" and len(node.inputs) >= 6 for node in graph.nodes)
    if count == 0:
        raise InputError(f"{source}: has no standard attention over a cache, so nothing can become sparse")
    return count


def write_sparse_folder(
    source: Path, destination: Path, pages: Pages, dense: Collection[int] = (), about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the folder into the existing, empty folder `destination`; what was done, as athena.json says it.

    dense: numbers of the attention nodes that stay as they are. about: more for the manifest. Raises InputError when
    the source is incomplete or hostile, or has no attention that can become sparse.
    """
    check_source(source)
    graph, manifest = read_graph(source), read_manifest(source)
    with foreign(source, "its files cannot be copied"):
        carry(source, destination, graph.files)
        for name in graph.files:
            shutil.copyfile(checked_path(source / name, folder=source), destination / name)
    with foreign(source / MODEL_FILE, "the graph is malformed"):
        model = ir.load(source / MODEL_FILE)
        nodes = list(model.graph)
        for node, name in zip(nodes, own_names([node.name or "" for node in nodes])):
            node.name = name
        count, kept = sparse_attention.run(model, pages, dense)
        if not count:
            raise InputError(f"{source}: no attention can become sparse ({kept[0].reason})")
        ir.save(model, destination / MODEL_FILE)
        onnx.checker.check_model(str(destination / MODEL_FILE))
    done = {
        "keys": pages.keys, **asdict(pages), "layers": count, "kept": [asdict(node) for node in kept], **(about or {}),
    }  # fmt: skip
    write_json(destination / MANIFEST, {**manifest, RECORD: done})
    return done
