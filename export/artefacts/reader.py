"""Reads a model folder's graph without trusting it: plain data classes, weights memory-mapped.

Serves the runtime and the cost model. Every external tensor is checked before a byte of it is touched: a plain file
name inside the folder, no link out of it, offset and length inside the file, length equal to shape times element size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from export.artefacts.onnx_file import plain
from export.artefacts.onnx_file.records import ModelRecord, NodeRecord, TensorRecord, ValueRecord
from export.artefacts.onnx_file.types import dtype_of, is_common
from export.contract.errors import InputError
from export.contract.formats import LOOKUPS, PRODUCTS, CodebookLayout, Layout, operator_layout
from export.contract.formats.base import DOMAIN, FLOATS
from export.contract.formats.nested import NESTED_MATMUL
from export.contract.operators.experts import EXPERT_PRODUCTS, ExpertLayout
from export.contract.operators.integers import SDR_MATMUL, IntegerLayout, format_of
from export.contract.operators.tender import TenderFormat
from export.contract.sdr import SdrFormat
from export.contract.sparse import SPARSE_MATMUL, SparseLayout
from export.files.access import checked_path, open_file, read_bytes
from export.files.foreign import foreign
from export.files.mapping import mapped_bytes

RUNTIME_DOMAIN = "ai.athena.runtime"  # of nodes that the runtime puts into a graph, and no file may hold
_T = TypeVar("_T")
_MAX_FILE = 1 << 28  # bytes; weights are beside it
_MAX_ELEMENTS = 2**40
_MAX_DIMENSIONS = 32  # what every NumPy takes
_MAX_NODES = 20_000  # three times what the largest published decoders need
_READ_BYTES = 1 << 26


@dataclass(frozen=True)
class Node:
    """One operator call. Absent optional inputs are empty strings."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_product(self) -> bool:
        """Whether it is X @ W^T with a matrix of a weight format."""
        return self.domain == DOMAIN and self.op_type in PRODUCTS

    @property
    def is_lookup(self) -> bool:
        """Whether it looks up rows of a matrix of a weight format."""
        return self.domain == DOMAIN and self.op_type in LOOKUPS

    def matrix_layout(self) -> Layout:
        """Attributes of a product with a stored matrix, or of a lookup. Raises InputError when one is wrong."""
        return self._attributes(partial(operator_layout, self.op_type))

    @property
    def is_expert_product(self) -> bool:
        """Whether it is a product with the matrices of picked experts."""
        return self.domain == DOMAIN and self.op_type in EXPERT_PRODUCTS

    def expert_layout(self) -> ExpertLayout:
        """Attributes of a product with experts. Raises InputError when one is wrong."""
        return self._attributes(partial(ExpertLayout.of, self.op_type))

    def layout(self) -> CodebookLayout:
        """Attributes of a CodebookMatMul or CodebookGather node. Raises InputError when one is wrong."""
        found = self.matrix_layout()
        if not isinstance(found, CodebookLayout):
            raise InputError(f"node {self.name}: {self.op_type} has no codebook")
        return found

    def sparse_layout(self) -> SparseLayout:
        """Attributes of a SparseMatMul node. Raises InputError when one is wrong."""
        return self._attributes(partial(_fields_of, SparseLayout))

    def integer_layout(self) -> IntegerLayout:
        """Attributes of an SdrMatMul node. Raises InputError when one is wrong."""
        return self._attributes(partial(_fields_of, IntegerLayout))

    def sdr_format(self) -> SdrFormat:
        """SDR format of an SdrQuantize or SdrAttention node. Raises InputError when it is none."""
        return self._attributes(format_of)

    def tender_format(self) -> TenderFormat:
        """Attributes of a TenderQuantize node. Raises InputError when one is wrong."""
        return self._attributes(TenderFormat.of)

    def _attributes(self, read: Callable[[Mapping[str, Any]], _T]) -> _T:
        try:
            return read(self.attributes)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"node {self.name}: attributes of {self.op_type} are wrong ({error})") from None


def _fields_of(kind: type[_T], attributes: Mapping[str, Any]) -> _T:
    return kind(**{name: attributes[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ValueInfo:
    """A graph input or output, or an inner value whose shape the file states."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str, ...] | None  # symbolic dimensions by name


@dataclass(frozen=True)
class Graph:
    """An ONNX graph as plain data; weights are read-only views of the mapped file."""

    folder: Path
    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    values: Mapping[str, ValueInfo]  # every value whose shape is stated, weights included
    metadata: Mapping[str, str]
    opset: int
    files: Mapping[str, int]  # those that hold weights, and how many of their bytes
    larger_than_memory: bool = False  # whether they are mapped and do not fit: said by whoever knows the memory

    def names(self) -> set[str]:
        """Names of all its values; those of a file may be any."""
        own = (*self.weights, *(value.name for value in self.inputs))
        return {*own, *(name for node in self.nodes for name in (*node.inputs, *node.outputs))}


def fresh(name: str, taken: set[str]) -> str:
    """The name for a value that is made, or a longer one where it is taken."""
    while name in taken:
        name += "#"
    return name


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
    external = {t.name: _external(t, t.external) for t in model.tensors if t.external is not None}
    sizes: dict[str, int] = {}
    for part in external.values():
        sizes[part.location] = max(sizes.get(part.location, 0), part.offset + part.length)
    nested = any(node.op_type == NESTED_MATMUL and node.domain == DOMAIN for node in model.nodes)
    maps = _open_files(folder, sizes, nested or mapped, huge=not nested)
    weights = {t.name: external[t.name].of(maps) if t.name in external else _inline(t) for t in model.tensors}
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


@dataclass(frozen=True)
class _External:
    """A tensor that another file holds."""

    where: str
    location: str  # a plain file name
    offset: int
    length: int  # bytes
    dtype: np.dtype
    shape: tuple[int, ...]

    def of(self, files: Mapping[str, np.ndarray]) -> np.ndarray:
        part = files[self.location][self.offset : self.offset + self.length]
        if self.offset % self.dtype.itemsize:
            part = part.copy()  # an unaligned tensor cannot be viewed in place
        try:
            return part.view(self.dtype).reshape(self.shape)
        except (TypeError, ValueError) as error:  # too many dimensions; text, which has no fixed size
            raise InputError(f"{self.where} cannot be read ({error})") from None


def _kind(tensor: TensorRecord) -> tuple[str, np.dtype, tuple[int, ...]]:
    """How messages call a tensor, its type and its shape. Raises InputError when it has none."""
    where, shape = f"model.onnx: tensor {tensor.name}", tensor.dims
    try:
        dtype = dtype_of(tensor.data_type)
    except (KeyError, TypeError):
        raise InputError(f"{where} has an unknown element type {tensor.data_type}") from None
    elements = math.prod(shape)
    if len(shape) > _MAX_DIMENSIONS or any(not 0 <= d <= _MAX_ELEMENTS for d in shape) or elements > _MAX_ELEMENTS:
        raise InputError(f"{where} has an impossible shape {list(shape)}")
    return where, dtype, shape


def _inline(tensor: TensorRecord) -> np.ndarray:
    where, dtype, shape = _kind(tensor)
    try:
        if tensor.raw and is_common(tensor.data_type) and sys.byteorder == "little":
            array = np.frombuffer(bytes(tensor.raw), dtype).reshape(shape)
        else:
            from export.artefacts.onnx_file import by_onnx

            array = by_onnx.array_of(tensor.source)
    except Exception as error:
        raise InputError(f"{where} cannot be read ({error})") from None
    array.setflags(write=False)
    return array


def _external(tensor: TensorRecord, entries: Mapping[str, str]) -> _External:
    where, dtype, shape = _kind(tensor)
    location = entries.get("location", "")
    if not location or "\0" in location or Path(location).name != location or location in (".", ".."):
        raise InputError(
            f"{where}: external data location {location!r} is refused; only a plain file name in the folder is allowed"
        )
    needed = math.prod(shape) * dtype.itemsize
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", needed))
    except ValueError:
        raise InputError(f"{where}: offset and length of external data must be whole numbers") from None
    if dtype.hasobject or length != needed:
        raise InputError(f"{where}: external data has {length} bytes, its shape needs {needed}")
    if not 0 <= offset < 2**62:
        raise InputError(f"{where}: external data lies outside its file ({offset}+{length} bytes)")
    return _External(where, location, offset, length, dtype, shape)


def _open_files(
    folder: Path, sizes: Mapping[str, int], mapped: bool | Callable[[int], bool], huge: bool
) -> dict[str, np.ndarray]:
    """The first bytes of each file, uint8, as many as the tensors need."""
    for name, size in sizes.items():
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: this file is missing, model.onnx keeps its weights there")
        with open_file(folder / name, folder=folder) as file:
            there = file.seek(0, 2)
        if size > there:
            raise InputError(f"{folder / name}: external data lies outside its file ({size} of {there} bytes)")
    keep = mapped(sum(sizes.values())) if callable(mapped) else mapped
    try:
        read = partial(_map, huge=huge) if keep else _read
        return {name: read(folder, name, size) for name, size in sizes.items()}
    except MemoryError:
        raise InputError(f"{folder}: the weights need more memory than there is") from None


def _map(folder: Path, name: str, size: int, huge: bool) -> np.ndarray:
    if not size:
        return np.empty(0, np.uint8)
    try:
        return mapped_bytes(checked_path(folder / name, folder=folder), size, huge)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / name}: cannot be mapped ({error})") from None


def _read(folder: Path, name: str, size: int) -> np.ndarray:
    """In memory. Large arrays get huge pages where the system has them, which a mapped file never does."""
    try:
        data = np.empty(size, np.uint8)
    except ValueError:  # beyond what a process can address
        raise MemoryError from None
    with open_file(folder / name, folder=folder) as file:
        view, done = memoryview(data.data), 0
        while done < size:
            count = file.readinto(view[done : done + _READ_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise InputError(f"{folder / name}: ended after {done} of {size} bytes")
            done += count
    data.setflags(write=False)
    return data


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
