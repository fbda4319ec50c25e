"""Reads a model folder's graph without trusting it: plain data (graph.py), weights memory-mapped (tensors.py).

Serves the runtime and the cost model. Every external tensor is checked before a byte of it is touched: a plain file
name inside the folder, no link out of it, offset and length inside the file, length equal to shape times element size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from export.artefacts.graph import RUNTIME_DOMAIN, Graph, Node, ValueInfo
from export.artefacts.onnx_file import plain
from export.artefacts.onnx_file.records import ModelRecord, NodeRecord, ValueRecord
from export.artefacts.onnx_file.types import dtype_of
from export.artefacts.tensors import external_tensor, inline_tensor, open_files
from export.contract.errors import InputError
from export.contract.formats import Layout
from export.contract.formats.base import DOMAIN, FLOATS
from export.contract.formats.nested import NESTED_MATMUL
from export.contract.operators.experts import ExpertLayout
from export.contract.operators.integers import SDR_MATMUL
from export.contract.sparse import SPARSE_MATMUL
from export.files.access import read_bytes
from export.files.foreign import foreign

_MAX_FILE = 1 << 28  # bytes; weights are beside it
_MAX_NODES = 20_000  # three times what the largest published decoders need


def read_graph(folder: Path, filename: str = "model.onnx", mapped: bool | Callable[[int], bool] = True) -> Graph:
    """Read `folder`/model.onnx and map its weights, or read them into memory (mapped=False).

    mapped may also decide by the number of bytes. Of a file, only what the tensors need is mapped or read. With nested
    codes it is always mapped, because not all of it may be wanted (widths.py). Raises InputError when a file is
    missing, broken or hostile.
    """
    path = folder / filename
    if not path.exists():
        raise InputError(f"{path}: this file is missing; a folder made by `athena-export export` was expected")
    model = _records(path, folder)
    with foreign(path, "the graph is malformed"):
        return _convert(model, folder, mapped)


def _records(path: Path, folder: Path) -> ModelRecord:
    with foreign(path, "not a readable ONNX file"):
        data = read_bytes(path, _MAX_FILE, folder)
        model = plain.records_of(data)
    if model is not None and len(model.nodes) <= _MAX_NODES:
        return model
    from export.artefacts.onnx_file import by_onnx

    with foreign(path, "not a readable ONNX file"):
        parsed = by_onnx.parsed(data)
    with foreign(path, "the graph is malformed"):
        return by_onnx.records_of(parsed, _MAX_NODES)


def _convert(model: ModelRecord, folder: Path, mapped: bool | Callable[[int], bool]) -> Graph:
    external = {t.name: external_tensor(t, t.external) for t in model.tensors if t.external is not None}
    sizes: dict[str, int] = {}
    for part in external.values():
        sizes[part.location] = max(sizes.get(part.location, 0), part.offset + part.length)
    nested = any(node.op_type == NESTED_MATMUL and node.domain == DOMAIN for node in model.nodes)
    maps = open_files(folder, sizes, nested or mapped, huge=not nested)
    weights = {t.name: external[t.name].of(maps) if t.name in external else inline_tensor(t) for t in model.tensors}
    nodes = tuple(map(_node, model.nodes, own_names([node.name for node in model.nodes])))
    _check_order(nodes, {*weights, *(i.name for i in model.inputs)})
    values = {v.name: _value(v) for v in (*model.values, *model.inputs, *model.outputs)}
    values |= {name: ValueInfo(name, array.dtype, array.shape) for name, array in weights.items()}
    for node in nodes:
        if node.is_product or node.is_lookup:
            _check_matrix(node, node.matrix_layout(), 1, weights)
        elif node.is_expert_product:
            _check_matrix(node, node.expert_layout(), 2, weights)
        elif node.domain == DOMAIN and node.op_type == SPARSE_MATMUL:
            sparse_weights(node, weights)
        elif node.domain == DOMAIN and node.op_type == SDR_MATMUL:
            _check_integer_product(node, weights)
    return Graph(
        folder=folder,
        nodes=nodes,
        weights=weights,
        inputs=tuple(_value(v) for v in model.inputs if v.name not in weights),
        outputs=tuple(_value(v) for v in model.outputs),
        values=values,
        metadata=model.metadata,
        opset=model.opsets.get("", 0),
        files=sizes,
    )


def own_names(names: Sequence[str]) -> list[str]:
    """The names of nodes, each made different from all others: a graph need not name its nodes, nor name them apart."""
    taken, found = set(names), []
    given = {""}
    for number, name in enumerate(names):
        own = name
        if name in given:
            own = f"{name}#{number}"
            while own in taken:
                own += "#"
        taken.add(own)
        given.add(name)
        found.append(own)
    return found


def _node(node: NodeRecord, name: str) -> Node:
    if node.domain == RUNTIME_DOMAIN:
        raise InputError(f"model.onnx: operator {RUNTIME_DOMAIN}::{node.op_type[:100]} is not supported here")
    attributes = {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for key, value in node.attributes.items()
    }
    return Node(node.op_type, node.domain, name, node.inputs, node.outputs, attributes)


def _check_order(nodes: tuple[Node, ...], known: set[str]) -> None:
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise InputError(f"model.onnx: node {node.name} reads {name!r}, which nothing before it makes")
        for name in node.outputs:
            if name and name in known:
                raise InputError(f"model.onnx: node {node.name} makes {name!r} a second time")
            known.add(name)


def _value(info: ValueRecord) -> ValueInfo:
    try:
        dtype = dtype_of(info.element_type) if info.element_type else None
    except (KeyError, TypeError):
        dtype = None
    return ValueInfo(info.name, dtype, info.shape)


def _check_matrix(node: Node, layout: Layout | ExpertLayout, first: int, weights: Mapping[str, np.ndarray]) -> None:
    """The parts must be stored and fit the attributes; those that can be may be computed from other weights.

    first: which input of the node is the first part.
    """
    parts = layout.parts()
    needed = " and ".join(name for name, part in parts.items() if not part.computed)
    if len(node.inputs) != first + len(parts):
        raise InputError(f"node {node.name}: {node.op_type} needs {needed} as stored weights")
    arrays = []
    for (name, part), given in zip(parts.items(), node.inputs[first:]):
        if given not in weights and not part.computed:
            raise InputError(f"node {node.name}: {node.op_type} needs {needed} as stored weights")
        arrays.append(weights[given] if given in weights else np.empty(part.shape, part.dtypes[0]))
        if given in weights and part.dtypes == FLOATS and not np.isfinite(weights[given]).all():
            raise InputError(f"node {node.name}: its {name} holds numbers that are not finite")
    try:
        layout.check(*arrays)
    except ValueError as error:
        raise InputError(f"node {node.name}: {error}") from None


def sparse_weights(node: Node, weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Row-major places int64 [n] and values of a SparseMatMul node. Raises InputError when they do not fit."""
    if len(node.inputs) != 3 or any(name not in weights for name in node.inputs[1:]):
        raise InputError(f"node {node.name}: {node.op_type} needs gaps and values as stored weights")
    gaps, values = (weights[name] for name in node.inputs[1:])
    try:
        return node.sparse_layout().places(gaps, values), values
    except ValueError as error:
        raise InputError(f"node {node.name}: {error}") from None


def _check_integer_product(node: Node, weights: Mapping[str, np.ndarray]) -> None:
    """Codes, codebook and flags must be stored and fit the attributes; scales may be computed from other weights."""
    layout = node.integer_layout()
    if len(node.inputs) != 7 or any(name not in weights for name in node.inputs[3:6]):
        raise InputError(f"node {node.name}: {node.op_type} needs codes, codebook and flags as stored weights")
    codes, codebook, flags = (weights[name] for name in node.inputs[3:6])
    scale = weights.get(node.inputs[6], np.empty(layout.stored().scale_shape, np.float32))
    try:
        layout.check(codes, codebook, flags, scale)
    except ValueError as error:
        raise InputError(f"node {node.name}: {error}") from None
