"""The work of one node: products, look-ups, what is counted by its elements, and which file counts the others.

contrib.py has the operators of com.microsoft, integer_nodes.py those on integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout, Layout
from export.contract.formats.base import DOMAIN
from export.contract.formats.groups import GroupsLayout
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.contract.operators.delta_rule import GATED_DELTA_RULE
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.state_space import SELECTIVE_STATE_SPACE
from export.contract.sparse import SPARSE_MATMUL
from hw_model.graph_work.attention_nodes import sink_attention, standard_attention
from hw_model.graph_work.context import Context
from hw_model.graph_work.operation import ACTIVATION_BYTES, Operation
from hw_model.graph_work.state_nodes import causal_convolution, convolution, delta_rule, state_space

_LARGEST_OWN = 64  # what the two sides of a product of activations have in common, at most
# Operations per output element of the elementwise and reduction operators; transcendental functions count as four.
PER_ELEMENT: Mapping[str, tuple[str, int]] = {
    "Add": ("elementwise", 1),
    "Mul": ("elementwise", 1),
    "Sub": ("elementwise", 1),
    "Relu": ("elementwise", 1),
    "Sigmoid": ("activation", 6),
    "Gelu": ("activation", 10),
    "Tanh": ("activation", 6),
    "RMSNormalization": ("normalization", 4),
    "SimplifiedLayerNormalization": ("normalization", 4),  # the name onnxruntime gave it before it was standard
    "LayerNormalization": ("normalization", 6),
    "RotaryEmbedding": ("rotary", 3),
    "Cos": ("rotary", 4),
    "Sin": ("rotary", 4),
    "Log": ("elementwise", 4),
    "Floor": ("elementwise", 1),
    "Div": ("elementwise", 1),
    "Clip": ("elementwise", 2),
    "Max": ("elementwise", 1),
    "Min": ("elementwise", 1),
    "Where": ("elementwise", 1),
    "ReduceSum": ("reduction", 1),
    "Softmax": ("reduction", 6),
    "TopK": ("reduction", 4),
    "ReduceMax": ("reduction", 1),
    "ReduceL2": ("reduction", 2),
    "CumSum": ("mask", 1),
    "Expand": ("mask", 1),
    "And": ("mask", 1),
    "Less": ("mask", 1),
    "LessOrEqual": ("mask", 1),
    "Range": ("mask", 1),
    "Cast": ("data movement", 1),
    "GatherElements": ("data movement", 1),
    "Gather": ("data movement", 1),  # of activations: columns put in another order
    "Slice": ("data movement", 1),
    "Transpose": ("data movement", 1),
}
FREE = frozenset({"Unsqueeze", "Squeeze", "Shape", "Split", "Identity", "Reshape", "Concat"})  # views and shapes


def operation_of(node: Node, context: Context) -> Operation:
    """Raises InputError on an operator that has no price."""
    ours = node.domain == DOMAIN
    weight_bytes = context.weight_bytes(node)
    if node.is_product or (node.op_type == "MatMul" and not node.domain):
        return _linear(node, context)
    if node.is_expert_product:
        return _experts(node, context)
    table = node.op_type == "Gather" and weight_bytes and node.inputs[0] in context.constant
    if node.is_lookup or table:
        rows = node.matrix_layout().N if ours else context.shape(node.inputs[0])[0]
        return embedding(node, context, rows, node.inputs[0 if ours else 1])
    counted = _COUNTED.get((node.domain, node.op_type))
    if counted is not None:
        return counted(node, context)
    if node.op_type in PER_ELEMENT and not node.domain:
        return per_element(node, context, *PER_ELEMENT[node.op_type])
    raise InputError(f"model.onnx: operator {node.domain or 'ai.onnx'}::{node.op_type} ({node.name}) has no cost model")


def per_element(node: Node, context: Context, kind: str, work: int) -> Operation:
    """`work` operations for every element of the output, or of the input where the operator reduces it."""
    elements = context.elements(node.inputs[0]) if kind == "reduction" else context.made(node)
    return Operation(
        node.name, kind, vector_ops=work * elements, weight_bytes=context.weight_bytes(node),
        activation_bytes=context.moved(node),
    )  # fmt: skip


def embedding(node: Node, context: Context, rows: int, ids: str) -> Operation:
    """A lookup of one row of a table for every id."""
    made = context.made(node)
    return Operation(
        node.name, "embedding", vector_ops=made, activation_bytes=ACTIVATION_BYTES * made,
        weight_bytes=context.weight_bytes(node) * context.elements(ids) // rows,
    )  # fmt: skip


def linear(node: Node, context: Context, rows: int, columns: int) -> Operation:
    """A product with a stored matrix [rows, columns]."""
    weight_bytes = context.weight_bytes(node)
    return Operation(
        node.name, "linear", macs=context.made(node) * columns, weight_bytes=weight_bytes,
        activation_bytes=context.moved(node), rows=rows, columns=columns,
        weight_bits=8 * weight_bytes / (rows * columns),
    )  # fmt: skip


def _linear(node: Node, context: Context) -> Operation:
    if node.domain == DOMAIN:
        layout = node.matrix_layout()
        found = linear(node, context, layout.N, layout.K)
        return replace(found, plane_bits=_plane_bits(node, layout, context), density=layout.density)
    if node.inputs[1] not in context.constant:
        return _of_activations(node, context)
    columns, rows = context.shape(node.inputs[1])[-2:]
    return linear(node, context, rows, columns)


def _plane_bits(node: Node, layout: Layout, context: Context) -> int:
    """Bit planes that multiply like the matrix, scales and zero points aside."""
    if isinstance(layout, GroupsLayout):
        return layout.bits
    book = context.graph.weights.get(node.inputs[2]) if isinstance(layout, CodebookLayout) else None
    return layout.bits if book is not None and uniform(book) else 8


def uniform(book: np.ndarray) -> bool:
    """Whether the entries of every codebook int8 [..., levels] are equally spaced, but for last ones that repeat."""
    steps = np.diff(book.astype(np.int64), axis=-1)
    if steps.shape[-1] == 0 or (steps[..., 0] == 0).any():
        return False
    behind = np.logical_and.accumulate((steps == 0)[..., ::-1], axis=-1)[..., ::-1]
    return bool(((steps == steps[..., :1]) | behind).all())


def _of_activations(node: Node, context: Context) -> Operation:
    """A small product of each token's own numbers (AltUp's streams): no array holds a side, a vector unit does it."""
    inner = context.shape(node.inputs[0])[-1]
    if not isinstance(inner, int) or inner > _LARGEST_OWN:
        raise InputError(f"model.onnx: MatMul {node.name} of two activations has no cost model")
    return Operation(
        node.name, "elementwise", vector_ops=2 * inner * context.made(node), activation_bytes=context.moved(node)
    )


def _experts(node: Node, context: Context) -> Operation:
    """Products of every pick. Weights are read of the experts that have a pick, if picks are evenly spread."""
    layout, stored = node.expert_layout(), context.weight_bytes(node)
    picks = context.elements(node.inputs[1])
    missed = (1 - picks / context.phase.vectors / layout.experts) ** context.phase.vectors
    return Operation(
        node.name, "experts", macs=picks * layout.rows * layout.K, weight_bytes=round(stored * (1 - missed)),
        activation_bytes=context.moved(node), rows=layout.rows, columns=layout.K,
        weight_bits=8 * stored / (layout.N * layout.K),
    )  # fmt: skip


def _sparse(node: Node, context: Context) -> Operation:
    """One multiplication for every stored weight and token, counted beside the arrays: a vector unit does it."""
    stored = context.elements(node.inputs[2])
    tokens = context.made(node) // node.sparse_layout().N
    return Operation(
        node.name, "sparse", vector_ops=2 * stored * tokens, weight_bytes=context.weight_bytes(node),
        activation_bytes=context.moved(node),
    )  # fmt: skip


_COUNTED: Mapping[tuple[str, str], Callable[[Node, Context], Operation]] = {  # by domain and operator
    ("", "Attention"): standard_attention,
    ("", "Conv"): convolution,
    (DOMAIN, CAUSAL_CONVOLUTION): causal_convolution,
    (DOMAIN, GATED_DELTA_RULE): delta_rule,
    (DOMAIN, SELECTIVE_STATE_SPACE): state_space,
    (DOMAIN, SINK_ATTENTION): sink_attention,
    (DOMAIN, SPARSE_MATMUL): _sparse,
}
