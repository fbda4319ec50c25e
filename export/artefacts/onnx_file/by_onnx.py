"""The records of a file, by the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from export.artefacts.onnx_file.records import ModelRecord, NodeRecord, TensorRecord, ValueRecord
from export.contract.errors import InputError


def parsed(data: bytes) -> onnx.ModelProto:
    """The file as onnx has it. Raises what onnx raises."""
    return onnx.load_from_string(data)


def records_of(model: onnx.ModelProto, most_nodes: int) -> ModelRecord:
    """Its records. Raises InputError for more nodes than that, and for texts that are none."""
    graph = model.graph
    if len(graph.node) > most_nodes:
        raise InputError(f"model.onnx: has {len(graph.node)} nodes; at most {most_nodes} are read")
    _check_text(model)
    return ModelRecord(
        nodes=[_node(node) for node in graph.node],
        tensors=[_tensor(tensor) for tensor in graph.initializer],
        inputs=[_value(info) for info in graph.input],
        outputs=[_value(info) for info in graph.output],
        values=[_value(info) for info in graph.value_info],
        metadata={entry.key: entry.value for entry in model.metadata_props},
        opsets={entry.domain: entry.version for entry in model.opset_import},
    )


def array_of(source: Any) -> np.ndarray:
    """The array of a tensor that lies in the file: its TensorProto, or the bytes of one. Raises what onnx raises."""
    tensor = source if isinstance(source, onnx.TensorProto) else onnx.TensorProto.FromString(bytes(source))
    return onnx.numpy_helper.to_array(tensor)


def _check_text(model: onnx.ModelProto) -> None:
    """Names that are not UTF-8 come out of protobuf as bytes, which nothing after this expects."""
    graph = model.graph
    found: list[Any] = []
    for node in graph.node:
        found += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    for tensor in graph.initializer:
        found += [tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value))]
    for info in (*graph.input, *graph.output, *graph.value_info):
        found += [info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim)]
    found += [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    found += [entry.domain for entry in model.opset_import]
    if not all(isinstance(text, str) for text in found):
        raise InputError("model.onnx: holds a name that is not UTF-8")


def _node(node: onnx.NodeProto) -> NodeRecord:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return NodeRecord(node.op_type, node.domain, node.name, tuple(node.input), tuple(node.output), attributes)


def _tensor(tensor: onnx.TensorProto) -> TensorRecord:
    external = None
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        external = {entry.key: entry.value for entry in tensor.external_data}
    return TensorRecord(tensor.name, tensor.data_type, tuple(tensor.dims), external, None, tensor)


def _value(info: onnx.ValueInfoProto) -> ValueRecord:
    tensor = info.type.tensor_type
    shape: tuple[int | str, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return ValueRecord(info.name, tensor.elem_type, shape)
