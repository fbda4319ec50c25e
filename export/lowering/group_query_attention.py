"""Attention with a cache becomes com.microsoft::GroupQueryAttention, whose cache onnxruntime-genai keeps in place.

before  Attention(query, key, value, mask, past_key, past_value)             and the graph that makes the mask
after   GroupQueryAttention(query, key, value, past_key, past_value, seqlens_k, total_sequence_length)

Queries and keys stay rotated by the standard RotaryEmbedding nodes in front. Lengths are counted from the attention
mask, so a batch may be padded on the right only: a sequence whose first token is masked ends the run with an error of
the node /model/lengths/batches_must_be_padded_on_the_right. Without a batch nothing changes.

What the operator cannot hold keeps the standard form. On a CPU, onnxruntime 1.32 takes head sizes that are multiples of
8 (it says so only when the node runs) and takes a scale of 0 as if none were given.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN as ATHENA
from export.contract.operators.integers import SDR_ATTENTION
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from export.lowering.stored import Kept

DOMAIN = "com.microsoft"
HEAD_MULTIPLE = 8  # what head sizes of the operator are multiples of
_ATTRIBUTES = frozenset({"q_num_heads", "kv_num_heads", "scale", "softcap", "is_causal"})  # that have a counterpart
_MASK = frozenset(
    {"And", "LessOrEqual", "Less", "Sub", "Range", "Unsqueeze", "Squeeze", "Shape", "Cast"}
)  # operators of the mask that export/graph/whole/decoder.py builds
NO_WINDOW = -1
_OURS = {
    SDR_ATTENTION: "a razored cache has no counterpart",
    SINK_ATTENTION: "attention with sinks keeps its function body",
    SPARSE_ATTENTION: "sparse attention keeps its function body",
}


def run(model: ir.Model) -> tuple[int, list[Kept]]:
    """Replace attention nodes in place: how many, and those that stay in the standard form."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "Attention" and node.domain == "" and len(node.inputs) >= 6]
    whys = [_obstacle(node) for node in found]
    lowered = [node for node, why in zip(found, whys) if not why]
    if lowered:
        lengths = _lengths(graph, lowered[0])
        for node in lowered:
            _replace(graph, node, lengths)
        model.opset_imports[DOMAIN] = 1
    kept = [Kept(str(node.name), node.op_type, why) for node, why in zip(found, whys) if why]
    ours = [(n, _OURS[n.op_type]) for n in graph if n.domain == ATHENA and n.op_type in _OURS]
    return len(lowered), kept + [Kept(str(node.name), node.op_type, why) for node, why in ours]


def _obstacle(node: ir.Node) -> str:
    """Why GroupQueryAttention cannot stand for a node; empty when it can."""
    unknown = sorted(set(node.attributes) - _ATTRIBUTES)
    if unknown:
        return f"attribute {unknown[0]} has no counterpart"
    key_shape, heads = (None if node.inputs[4] is None else node.inputs[4].shape), node.attributes["q_num_heads"]
    kv_heads, size = node.attributes["kv_num_heads"].as_int(), None if key_shape is None else key_shape[-1]
    if not isinstance(size, int):
        return "its head size is not stated"
    if size % HEAD_MULTIPLE:
        return f"head size {size} is no multiple of {HEAD_MULTIPLE}"
    if kv_heads < 1 or heads.as_int() % kv_heads:
        return f"{heads.as_int()} heads are no multiple of {kv_heads} key-value heads"
    if "is_causal" not in node.attributes or not node.attributes["is_causal"].as_int():
        return "it is not causal"
    if "scale" in node.attributes and not node.attributes["scale"].as_float() > 0:
        return "its scale is not positive"
    if "softcap" in node.attributes and node.attributes["softcap"].as_float() < 0:
        return "its softcap is negative"
    try:
        window_of(node.inputs[3])
    except ValueError as error:
        return str(error)
    return ""


def _lengths(graph: ir.Graph, first: ir.Node) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [batch] (tokens before and with this pass, minus one) and the longest, int32 scalar.

    A sequence that begins with padding reads index 1 of one number, which every runtime refuses.
    """
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    if mask is None:
        raise InputError("model.onnx: has no input attention_mask")
    at, int32, long = "/model/lengths", ir.DataType.INT32, ir.DataType.INT64
    zero = _constant(graph, "lengths.zero", np.asarray(0, np.int64))
    minus_one = _constant(graph, "lengths.minus_one", np.asarray([-1], np.int64))
    one = _constant(graph, "lengths.one", np.asarray(1, np.int64))
    second = _constant(graph, "lengths.second", np.asarray([1], np.int64))
    first_axis = _constant(graph, "lengths.first", np.asarray([0], np.int64))
    steps = [
        ("Gather", f"{at}/first_is_seen", [mask, zero], {"axis": 1}, long, ["batch_size"]),
        ("Sub", f"{at}/first_is_padding", [one, -1], {}, long, ["batch_size"]),
        ("Gather", f"{at}/batches_must_be_padded_on_the_right", [minus_one, -1], {}, long, ["batch_size"]),
        ("ReduceSum", f"{at}/seen", [mask, second], {"keepdims": 0}, long, ["batch_size"]),
        ("Add", f"{at}/before_last", [-1, -2], {}, long, ["batch_size"]),
        ("Cast", f"{at}/seqlens_k", [-1], {"to": int32}, int32, ["batch_size"]),
        ("Shape", f"{at}/total_1d", [mask], {"start": 1, "end": 2}, long, [1]),
        ("Squeeze", f"{at}/total_long", [-1, first_axis], {}, long, []),
        ("Cast", f"{at}/total", [-1], {"to": int32}, int32, []),
    ]
    outputs: list[ir.Value] = []
    for op_type, name, inputs, attributes, dtype, shape in steps:
        given = [outputs[value] if isinstance(value, int) else value for value in inputs]  # type: ignore[attr-defined]
        outputs.append(_node(graph, first, op_type, name, given, attributes, dtype, shape))
    return outputs[5], outputs[8]


def _replace(graph: ir.Graph, node: ir.Node, lengths: tuple[ir.Value, ir.Value]) -> None:
    query, key, value, mask, past_key, past_value = node.inputs[:6]
    assert mask is not None
    attributes: dict[str, int | float] = {
        "num_heads": node.attributes["q_num_heads"].as_int(),
        "kv_num_heads": node.attributes["kv_num_heads"].as_int(),
        "local_window_size": window_of(mask),
        "do_rotary": 0,
    }
    for name in ("scale", "softcap"):
        if name in node.attributes:
            attributes[name] = node.attributes[name].as_float()
    fresh = ir.node(
        "GroupQueryAttention", [query, key, value, past_key, past_value, *lengths], attributes, domain=DOMAIN,
        num_outputs=3, name=node.name,
    )  # fmt: skip
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)


def window_of(mask: ir.Value | None) -> int:
    """Keys a query may see by the mask of export/graph/whole/decoder.py; -1 for all. Raises ValueError."""
    waiting, seen, window = [mask], set(), NO_WINDOW
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type not in _MASK:
            raise ValueError(f"{node.op_type} in its mask has no counterpart")
        if node.op_type == "Less":
            limit = node.inputs[1]
            if limit is None or limit.const_value is None or window != NO_WINDOW:
                raise ValueError("its mask is not of a form that has a counterpart")
            window = int(limit.const_value.numpy())
            if window <= 0:
                raise ValueError(f"its window of {window} keys has no counterpart")
        waiting += node.inputs
    return window if window < 2**31 else NO_WINDOW  # wider than any sequence is long


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.Tensor(array, name=name),
    )  # fmt: skip
    graph.register_initializer(value)
    return value


def _node(graph, before, op_type, name, inputs, attributes, dtype, shape) -> ir.Value:  # type: ignore[no-untyped-def]
    out = ir.Value(name=f"{name}/output_0", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.insert_before(before, ir.node(op_type, inputs, attributes, outputs=[out], name=name))
    return out
