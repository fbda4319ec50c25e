"""Attention with a cache becomes com.microsoft::GroupQueryAttention, whose cache onnxruntime-genai keeps in place.

before  Attention(query, key, value, mask, past_key, past_value)             and the graph that makes the mask
after   GroupQueryAttention(query, key, value, past_key, past_value, seqlens_k, total_sequence_length)

Queries and keys stay rotated by the standard RotaryEmbedding nodes in front. Lengths are counted from the attention
mask, so a batch may be padded on the right only; without a batch nothing changes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.errors import InputError

DOMAIN = "com.microsoft"


def run(model: ir.Model) -> int:
    """Replace all attention nodes in place; how many there were. Raises InputError on a mask that is not ours."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "Attention" and node.domain == "" and len(node.inputs) >= 6]
    if not found:
        return 0
    lengths = _lengths(graph, found[0])
    for node in found:
        _replace(graph, node, lengths)
    model.opset_imports[DOMAIN] = 1
    return len(found)


def _lengths(graph: ir.Graph, first: ir.Node) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [batch] (tokens before and with this pass, minus one) and the longest, int32 scalar."""
    mask = next((value for value in graph.inputs if value.name == "attention_mask"), None)
    if mask is None:
        raise InputError("model.onnx: has no input attention_mask")
    at, int32, long = "/model/lengths", ir.DataType.INT32, ir.DataType.INT64
    one = _constant(graph, "lengths.one", np.asarray(1, np.int64))
    second = _constant(graph, "lengths.second", np.asarray([1], np.int64))
    first_axis = _constant(graph, "lengths.first", np.asarray([0], np.int64))
    steps = [
        ("ReduceSum", f"{at}/seen", [mask, second], {"keepdims": 0}, long, ["batch_size"]),
        ("Sub", f"{at}/before_last", [None, one], {}, long, ["batch_size"]),
        ("Cast", f"{at}/seqlens_k", [None], {"to": int32}, int32, ["batch_size"]),
        ("Shape", f"{at}/total_1d", [mask], {"start": 1, "end": 2}, long, [1]),
        ("Squeeze", f"{at}/total_long", [None, first_axis], {}, long, []),
        ("Cast", f"{at}/total", [None], {"to": int32}, int32, []),
    ]
    outputs: list[ir.Value] = []
    for op_type, name, inputs, attributes, dtype, shape in steps:
        given = [outputs[-1] if value is None else value for value in inputs]  # type: ignore[attr-defined]
        outputs.append(_node(graph, first, op_type, name, given, attributes, dtype, shape))
    return outputs[2], outputs[5]


def _replace(graph: ir.Graph, node: ir.Node, lengths: tuple[ir.Value, ir.Value]) -> None:
    query, key, value, mask, past_key, past_value = node.inputs[:6]
    assert mask is not None
    attributes: dict[str, int | float] = {
        "num_heads": node.attributes["q_num_heads"].as_int(),
        "kv_num_heads": node.attributes["kv_num_heads"].as_int(),
        "scale": node.attributes["scale"].as_float(),
        "local_window_size": _window(mask) or -1,
        "do_rotary": 0,
    }
    if "softcap" in node.attributes:
        attributes["softcap"] = node.attributes["softcap"].as_float()
    fresh = ir.node(
        "GroupQueryAttention", [query, key, value, past_key, past_value, *lengths], attributes, domain=DOMAIN,
        num_outputs=3, name=node.name,
    )  # fmt: skip
    for old, new in zip(node.outputs, fresh.outputs):
        new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(node, fresh)
    ir.convenience.replace_all_uses_with(list(node.outputs), list(fresh.outputs), replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _window(mask: ir.Value) -> int | None:
    """Keys a query may see by the mask our exporter builds (export/decoder.py); None for all."""
    waiting, seen = [mask], set()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type not in ("And", "LessOrEqual", "Less", "Sub", "Range", "Unsqueeze", "Squeeze", "Shape", "Cast"):
            raise InputError(f"node {node.name}: {node.op_type} in the attention mask has no counterpart")
        if node.op_type == "Less":
            limit = node.inputs[1]
            assert limit is not None and limit.const_value is not None
            return int(limit.const_value.numpy())
        waiting += [value for value in node.inputs if value is not None]
    return None


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
