"""The records of a file without the onnx package, whose import takes longer than most models take to be planned.

Only what usual files have is read here, and only what leaves no doubt: whatever else there is makes records_of() give
None, and by_onnx.py reads the file. Fields and their numbers: onnx/onnx.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from export.artefacts.onnx_file.records import ModelRecord, NodeRecord, TensorRecord, ValueRecord
from export.artefacts.onnx_file.wire import (
    BYTES,
    FOUR,
    NUMBER,
    Unclear,
    fields,
    floats,
    key,
    numbers,
    signed,
    small,
    text,
)

_LARGEST = 16 << 20  # bytes of a file; in larger ones are weights, and onnx is faster
_MOST_NODES = 20_000
_HERE, _EXTERNAL = 0, 1  # TensorProto.DataLocation
_FLOAT, _INT, _STRING, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 6, 7, 8  # AttributeProto.AttributeType
_T = TypeVar("_T")


def records_of(data: bytes) -> ModelRecord | None:
    """The records of a model.onnx; None where it has anything unusual, or is broken."""
    if len(data) > _LARGEST:
        return None
    try:
        return _model(memoryview(data))
    except Unclear:
        return None


def _message(data: memoryview, once: dict[int, str], often: dict[int, str], unread: tuple[int, ...]) -> dict[str, Any]:
    """A message's fields by name: values of those that come once, lists of those that may come several times.

    unread: numbers of fields that nothing is read from. Others are no field of the message, or mean something else
    than is read here. Raises Unclear.
    """
    found: dict[str, Any] = {name: [] for name in often.values()}
    for at, value in fields(data):
        if at in often:
            found[often[at]].append(value)
        elif at in once:
            if once[at] in found:
                raise Unclear
            found[once[at]] = value
        elif at >> 3 not in unread:
            raise Unclear
    return found


def _texts(values: list[memoryview]) -> tuple[str, ...]:
    return tuple(map(text, values))


def _model(data: memoryview) -> ModelRecord:
    found = _message(data, _MODEL_ONCE, _MODEL_OFTEN, (1, 2, 3, 4, 5, 6, 25))
    graph = _message(found.get("graph", memoryview(b"")), {}, _GRAPH_OFTEN, (2, 10, 16))
    if len(graph["node"]) > _MOST_NODES:
        raise Unclear
    opsets = {}
    for entry in found["opset_import"]:
        one = _message(entry, {key(1, BYTES): "domain", key(2, NUMBER): "version"}, {}, ())
        opsets[text(one.get("domain", _EMPTY))] = signed(one.get("version", 0))
    return ModelRecord(
        nodes=_each(_node, graph["node"]),
        tensors=_each(_tensor, graph["initializer"]),
        inputs=_each(_value, graph["input"]),
        outputs=_each(_value, graph["output"]),
        values=_each(_value, graph["value_info"]),
        metadata=dict(map(_pair, found["metadata_props"])),
        opsets=opsets,
    )


def _each(read: Callable[[memoryview], _T], values: list[memoryview]) -> list[_T]:
    return [read(value) for value in values]


def _pair(data: memoryview) -> tuple[str, str]:
    found = _message(data, {key(1, BYTES): "key", key(2, BYTES): "value"}, {}, ())
    return text(found.get("key", _EMPTY)), text(found.get("value", _EMPTY))


def _node(data: memoryview) -> NodeRecord:
    found = _message(data, _NODE_ONCE, _NODE_OFTEN, (6, 8, 9))
    op_type, domain, name = (text(found.get(part, _EMPTY)) for part in ("op_type", "domain", "name"))
    attributes = dict(map(_attribute, found["attribute"]))
    return NodeRecord(op_type, domain, name, _texts(found["input"]), _texts(found["output"]), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    found = _message(data, _ATTRIBUTE_ONCE, _ATTRIBUTE_OFTEN, (13,))
    kind = found.get("type")
    value: Any
    if kind == _INT:
        value = signed(found.get("i", 0))
    elif kind == _FLOAT:
        value = floats(found["f"])[0] if "f" in found else 0.0
    elif kind == _STRING:
        value = bytes(found.get("s", _EMPTY))
    elif kind == _INTS:
        value = list(_int64s(found, "ints"))
    elif kind == _FLOATS:
        value = [number for part in found["floats"] for number in floats(part)]
    elif kind == _STRINGS:
        value = [bytes(part) for part in found["strings"]]
    else:
        raise Unclear
    return text(found.get("name", _EMPTY)), value


def _tensor(data: memoryview) -> TensorRecord:
    found = _message(data, _TENSOR_ONCE, _TENSOR_OFTEN, (4, 5, 6, 7, 10, 11, 12, 16))
    place = small(found.get("data_location", _HERE), _EXTERNAL)
    external = dict(map(_pair, found["external_data"]))
    return TensorRecord(
        name=text(found.get("name", _EMPTY)),
        data_type=small(found.get("data_type", 0)),
        dims=tuple(_int64s(found, "dims")),
        external=external if place == _EXTERNAL else None,
        raw=found.get("raw_data"),
        source=data,
    )


def _value(data: memoryview) -> ValueRecord:
    found = _message(data, {key(1, BYTES): "name", key(2, BYTES): "type"}, {}, (3, 4))
    kind = _message(found.get("type", _EMPTY), {key(1, BYTES): "tensor"}, {}, (6,))
    tensor = _message(kind.get("tensor", _EMPTY), {key(1, NUMBER): "element", key(2, BYTES): "shape"}, {}, ())
    shape: tuple[int | str, ...] | None = None
    if "shape" in tensor:
        shape = tuple(map(_dimension, _message(tensor["shape"], {}, {key(1, BYTES): "dim"}, ())["dim"]))
    return ValueRecord(text(found.get("name", _EMPTY)), small(tensor.get("element", 0)), shape)


def _dimension(data: memoryview) -> int | str:
    found = _message(data, {key(1, NUMBER): "value", key(2, BYTES): "name"}, {}, (3,))
    if len(found) > 1:
        raise Unclear
    return signed(found["value"]) if "value" in found else text(found.get("name", _EMPTY))


def _int64s(found: dict[str, Any], name: str) -> Iterator[int]:
    """Of a field that comes once for each number, or once for many."""
    for value in found[name]:
        if isinstance(value, int):
            yield signed(value)
        else:
            yield from numbers(value)


_EMPTY = memoryview(b"")
_MODEL_ONCE = {key(7, BYTES): "graph"}
_MODEL_OFTEN = {key(8, BYTES): "opset_import", key(14, BYTES): "metadata_props"}
_GRAPH_OFTEN = {
    key(1, BYTES): "node", key(5, BYTES): "initializer", key(11, BYTES): "input", key(12, BYTES): "output",
    key(13, BYTES): "value_info",
}  # fmt: skip
_NODE_ONCE = {key(3, BYTES): "name", key(4, BYTES): "op_type", key(7, BYTES): "domain"}
_NODE_OFTEN = {key(1, BYTES): "input", key(2, BYTES): "output", key(5, BYTES): "attribute"}
_ATTRIBUTE_ONCE = {
    key(1, BYTES): "name", key(2, FOUR): "f", key(3, NUMBER): "i", key(4, BYTES): "s", key(20, NUMBER): "type",
}  # fmt: skip
_ATTRIBUTE_OFTEN = {
    key(7, FOUR): "floats", key(7, BYTES): "floats", key(8, NUMBER): "ints", key(8, BYTES): "ints",
    key(9, BYTES): "strings",
}  # fmt: skip
_TENSOR_ONCE = {
    key(2, NUMBER): "data_type", key(8, BYTES): "name", key(9, BYTES): "raw_data", key(14, NUMBER): "data_location",
}  # fmt: skip
_TENSOR_OFTEN = {key(1, NUMBER): "dims", key(1, BYTES): "dims", key(13, BYTES): "external_data"}
