"""A graph and files with which stock onnxruntime and onnxruntime-genai run a folder's adapters.

`model_adapters.onnx` shares model.onnx.data with model.onnx and adds, at each layer that some adapter changes,
y + (x @ a) @ b, where a and b are inputs of the graph with defaults of rank 0; NAME.onnx_adapter fills them in. What
bottlenecks add, stock_bottlenecks.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.adapters.folder import folder_adapters, folder_sites
from export.adapters.onnx_adapter import onnx_adapter
from export.adapters.sites import Site, block_ends
from export.adapters.stock_bottlenecks import add_bottlenecks, bottleneck_parameters
from export.adapters.store import ADAPTERS, LORA, Adapter
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.files.access import read_bytes, write_bytes

GRAPH = "model_adapters.onnx"
SUFFIX = ".onnx_adapter"
_MAX_FILE = 1 << 28  # bytes of a graph without its weights


def write_stock_files(folder: Path) -> list[Path]:
    """Write the graph and a file for each adapter of a model folder. Raises InputError where it has none."""
    graph = read_graph(folder)
    adapters = folder_adapters(graph)
    if not adapters:
        raise InputError(f"{folder}: has no adapters")
    model = onnx.load_from_string(read_bytes(folder / "model.onnx", _MAX_FILE, folder))
    low_rank = [adapter for adapter in adapters if adapter.kind == LORA]
    add_bottlenecks(model, block_ends(graph), adapters)
    _add_terms(model, folder_sites(graph), {module for adapter in low_rank for module in adapter.terms})
    written = [folder / GRAPH]
    write_bytes(written[0], model.SerializeToString())
    for adapter in adapters:
        written.append(folder / ADAPTERS / f"{adapter.name}{SUFFIX}")
        try:
            write_bytes(written[-1], onnx_adapter(_parameters(adapter)))
        except ValueError as error:
            raise InputError(f"{written[-1]}: {error}") from None
    return written


def remove_stock_files(folder: Path) -> None:
    """Those of a folder whose adapters have changed: they would say otherwise."""
    (folder / GRAPH).unlink(missing_ok=True)
    for path in (folder / ADAPTERS).glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _parameters(adapter: Adapter) -> dict[str, np.ndarray]:
    """The graph's inputs, float32 a [columns, rank] and b [rank, rows]."""
    if adapter.kind != LORA:
        return bottleneck_parameters(adapter)
    found: dict[str, np.ndarray] = {}
    for module, term in adapter.terms.items():
        a, b = term.floats()
        found |= {f"{module}.lora_a": np.ascontiguousarray(a.T), f"{module}.lora_b": b}
    return found


def _add_terms(model: onnx.ModelProto, sites: Sequence[Site], modules: set[str]) -> None:
    graph = model.graph
    wanted = {site.node: site for site in sites if site.module in modules}
    nodes: list[onnx.NodeProto] = []
    for one in {site.module: site for site in wanted.values()}.values():
        rank = f"rank_of.{one.module}"
        forms: list[tuple[str, list[str | int | None], tuple[int, int]]] = [
            ("lora_a", [one.columns, rank], (one.columns, 0)),
            ("lora_b", [rank, one.rows], (0, one.rows)),
        ]
        for part, shape, empty in forms:
            name = f"{one.module}.{part}"
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            graph.initializer.append(numpy_helper.from_array(np.zeros(empty, np.float32), name))
    for node in graph.node:
        nodes.append(node)
        if node.name not in wanted:
            continue
        site = wanted[node.name]
        out, own = node.output[0], f"{node.output[0]}.without_adapter"
        node.output[0] = own
        between, term = f"{out}.adapter_rank", f"{out}.adapter"
        a, b = f"{site.module}.lora_a", f"{site.module}.lora_b"
        nodes += [
            helper.make_node("MatMul", [node.input[0], a], [between], f"{node.name}/adapter_down"),
            helper.make_node("MatMul", [between, b], [term], f"{node.name}/adapter_up"),
            helper.make_node("Add", [own, term], [out], f"{node.name}/add_adapter"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
