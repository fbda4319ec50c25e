"""The work of com.microsoft operators: what onnxruntime-genai's builder writes, and `athena-export lower`."""

from __future__ import annotations

from export.artefacts.graph import Node
from export.contract.errors import InputError
from hw_model.graph_work.attention_nodes import attention, causal_pairs
from hw_model.graph_work.context import Context
from hw_model.graph_work.nodes import embedding, linear, per_element
from hw_model.graph_work.operation import Operation

DOMAIN = "com.microsoft"
PER_ELEMENT = {  # kind and operations per element, as in nodes.py
    "SkipSimplifiedLayerNormalization": ("normalization", 5),
    "SkipLayerNormalization": ("normalization", 7),
    "RotaryEmbedding": ("rotary", 3),
    "FastGelu": ("activation", 10),
    "BiasGelu": ("activation", 11),
    "Gelu": ("activation", 10),
    "QuickGelu": ("activation", 7),
}


def operation_of(node: Node, context: Context) -> Operation:
    """Raises InputError on an operator that has no price."""
    if node.op_type == "MatMulNBits":
        return linear(node, context, node.attributes["N"], node.attributes["K"])
    if node.op_type == "GatherBlockQuantized":
        return embedding(node, context, context.shape(node.inputs[0])[0], node.inputs[1])
    if node.op_type == "GroupQueryAttention":
        return _attention(node, context)
    if node.op_type in PER_ELEMENT:
        return per_element(node, context, *PER_ELEMENT[node.op_type])
    raise InputError(f"model.onnx: operator {node.domain}::{node.op_type} ({node.name}) has no cost model")


def _attention(node: Node, context: Context) -> Operation:
    """Queries alone or packed with keys and values; rotation inside where `do_rotary` asks for it."""
    heads, kv_heads = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    packed = not node.inputs[1]
    head_dim = context.shape(node.inputs[0])[-1] // (heads + 2 * kv_heads if packed else heads)
    window = max(node.attributes.get("local_window_size", -1), 0)
    found = attention(node, context, heads, kv_heads, head_dim, causal_pairs(context.phase, window), window)
    if not node.attributes.get("do_rotary", 0):
        return found
    rotated = 3 * context.phase.vectors * (heads + kv_heads) * head_dim
    return Operation(**{**found.__dict__, "vector_ops": found.vector_ops + rotated})
