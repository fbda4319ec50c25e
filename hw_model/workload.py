"""What one forward pass costs in work: multiply-accumulates, bytes and shapes per node of the exported graph.

Reads the ONNX graph alone. Every value's shape is known from the file once batch, sequence and past length are bound;
an operator that is not in the tables raises, it never counts as free. Nodes that depend on stored weights alone run
once at load and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from export.contract import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN
from export.errors import InputError
from export.reader import Graph, Node

ACTIVATION_BYTES = 4  # our graphs compute in float32
CACHE_BYTES = 4  # and so do their caches

# Operations per output element of the elementwise and reduction operators; transcendental functions count as four.
_PER_ELEMENT: Mapping[str, tuple[str, int]] = {
    "Add": ("elementwise", 1),
    "Mul": ("elementwise", 1),
    "Sub": ("elementwise", 1),
    "Relu": ("elementwise", 1),
    "Sigmoid": ("activation", 6),
    "Gelu": ("activation", 10),
    "Tanh": ("activation", 6),
    "RMSNormalization": ("normalization", 4),
    "LayerNormalization": ("normalization", 6),
    "RotaryEmbedding": ("rotary", 3),
    "Cos": ("rotary", 4),
    "Sin": ("rotary", 4),
    "Div": ("elementwise", 1),
    "Max": ("elementwise", 1),
    "Where": ("elementwise", 1),
    "ReduceSum": ("reduction", 1),
    "ReduceMax": ("reduction", 1),
    "ReduceL2": ("reduction", 2),
    "CumSum": ("mask", 1),
    "Expand": ("mask", 1),
    "And": ("mask", 1),
    "Less": ("mask", 1),
    "LessOrEqual": ("mask", 1),
    "Range": ("mask", 1),
    "Cast": ("data movement", 1),
    "Gather": ("data movement", 1),  # of activations: columns put in another order
}
_FREE = frozenset({"Unsqueeze", "Squeeze", "Shape", "Split", "Identity", "Reshape", "Concat"})  # views and shapes


@dataclass(frozen=True)
class Phase:
    """One forward pass: prefill of `tokens` positions (past 0) or decode of one token behind `past` others."""

    name: str  # "prefill" or "decode"
    tokens: int
    past: int

    @staticmethod
    def of(name: str, context: int) -> Phase:
        """prefill: `context` tokens at once; decode: one token at position `context`. Raises InputError otherwise."""
        if name not in ("prefill", "decode"):
            raise InputError(f"--phase must be prefill or decode, not {name!r}")
        if not 1 <= context <= 2**24:
            raise InputError(f"--context must be 1 to {2**24}, not {context}")
        return Phase(name, context, 0) if name == "prefill" else Phase(name, 1, context - 1)

    @property
    def total(self) -> int:
        return self.past + self.tokens


@dataclass(frozen=True)
class Operation:
    """The work of one node in one forward pass, batch size one."""

    name: str
    kind: str  # linear, attention, embedding, normalization, activation, rotary, elementwise, mask, data movement
    macs: int = 0  # multiply-accumulates
    vector_ops: int = 0  # other arithmetic
    weight_bytes: int = 0  # read from the stored model at their real bits
    cache_read_bytes: int = 0
    cache_write_bytes: int = 0
    activation_bytes: int = 0  # inputs and outputs
    rows: int = 0  # N and K of a weight matrix
    columns: int = 0
    weight_bits: float = 0.0  # stored bits per weight, everything included
    heads: int = 0  # attention only
    kv_heads: int = 0
    head_dim: int = 0

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_read_bytes + self.cache_write_bytes + self.activation_bytes


def operations(graph: Graph, phase: Phase) -> list[Operation]:
    """Work of every node. Raises InputError on an operator that has no price or a value without a shape."""
    sizes = {
        "batch_size": 1,
        "sequence_length": phase.tokens,
        "past_sequence_length": phase.past,
        "total_sequence_length": phase.total,
    }
    constant = set(graph.weights)
    # int64 initializers are indices and shapes, not weights
    stored = {name: array.nbytes for name, array in graph.weights.items() if array.dtype != np.int64}
    if phase.name == "decode" and not any(info.name.startswith("past_key_values") for info in graph.inputs):
        raise InputError("model.onnx: has no cache, as an encoder; cost it with --phase prefill")
    found = []
    for node in graph.nodes:
        if all(name in constant for name in node.inputs if name):
            constant.update(node.outputs)
            # what is decoded once at load is counted where it is used, at its stored size
            total = sum(stored.get(name, 0) for name in node.inputs)
            stored.update(dict.fromkeys(node.outputs, total))
            continue
        try:
            operation = _operation(node, graph, sizes, phase, constant, stored)
        except InputError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise InputError(f"model.onnx: node {node.name} ({node.op_type}) is malformed ({kind}: {error})") from None
        if operation is not None:
            found.append(operation)
    return found


def _shape(graph: Graph, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    info = graph.values.get(name)
    if info is None or info.shape is None:
        raise InputError(f"model.onnx: the shape of {name!r} is not stated; run ONNX shape inference on the file first")
    dims = []
    for dim in info.shape:
        size = sizes.get(dim) if isinstance(dim, str) else dim
        if size is None:
            raise InputError(f"model.onnx: dimension {dim!r} of {name!r} is unknown")
        dims.append(size)
    return tuple(dims)


def _operation(
    node: Node, graph: Graph, sizes: Mapping[str, int], phase: Phase, constant: set[str], stored: Mapping[str, int]
) -> Operation | None:
    if node.op_type in _FREE and not node.domain:
        return None
    outputs = [math.prod(_shape(graph, name, sizes)) for name in node.outputs]
    dynamic = [name for name in node.inputs if name and name not in constant]
    moved = ACTIVATION_BYTES * (outputs[0] + sum(math.prod(_shape(graph, n, sizes)) for n in dynamic))
    weight_bytes = sum(stored.get(name, 0) for name in node.inputs)
    if (node.domain == DOMAIN and node.op_type == CODEBOOK_MATMUL) or node.op_type == "MatMul":
        return _linear(node, graph, sizes, outputs[0], moved, weight_bytes, constant)
    if (node.domain == DOMAIN and node.op_type == CODEBOOK_GATHER) or (node.op_type == "Gather" and weight_bytes):
        rows = node.layout().N if node.domain == DOMAIN else _shape(graph, node.inputs[0], sizes)[0]
        ids = math.prod(_shape(graph, node.inputs[1 if not node.domain else 0], sizes))
        return Operation(
            node.name, "embedding", vector_ops=outputs[0], weight_bytes=weight_bytes * ids // rows,
            activation_bytes=ACTIVATION_BYTES * outputs[0],
        )  # fmt: skip
    if node.op_type == "Attention" and not node.domain:
        return _attention(node, graph, sizes, phase)
    if node.op_type in _PER_ELEMENT and not node.domain:
        kind, per_element = _PER_ELEMENT[node.op_type]
        work = per_element * outputs[0]
        return Operation(node.name, kind, vector_ops=work, weight_bytes=weight_bytes, activation_bytes=moved)
    raise InputError(f"model.onnx: operator {node.domain or 'ai.onnx'}::{node.op_type} ({node.name}) has no cost model")


def _linear(
    node: Node, graph: Graph, sizes: Mapping[str, int], outputs: int, moved: int, weight_bytes: int, constant: set[str]
) -> Operation:
    if node.domain == DOMAIN:
        rows, columns = node.layout().N, node.layout().K
    elif node.inputs[1] in constant:
        columns, rows = _shape(graph, node.inputs[1], sizes)[-2:]
    else:
        raise InputError(f"model.onnx: MatMul {node.name} of two activations has no cost model")
    return Operation(
        node.name, "linear", macs=outputs * columns, weight_bytes=weight_bytes, activation_bytes=moved, rows=rows,
        columns=columns, weight_bits=8 * weight_bytes / (rows * columns),
    )  # fmt: skip


def _attention(node: Node, graph: Graph, sizes: Mapping[str, int], phase: Phase) -> Operation:
    heads, kv_heads = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    width = _shape(graph, node.inputs[0], sizes)[-1]
    head_dim = width // heads
    if node.attributes.get("is_causal", 0):
        pairs = phase.tokens * phase.past + phase.tokens * (phase.tokens + 1) // 2  # query-key pairs
        row = CACHE_BYTES * kv_heads * head_dim  # one token's keys (or values)
    else:  # an encoder: every token sees every token, nothing is kept
        pairs, row = phase.tokens**2, 0
    return Operation(
        node.name,
        "attention",
        macs=2 * pairs * heads * head_dim,
        vector_ops=6 * pairs * heads,  # scale, maximum, exponential (as four with the sum), division
        cache_read_bytes=2 * row * phase.total,
        cache_write_bytes=2 * row * phase.tokens,
        activation_bytes=ACTIVATION_BYTES * phase.tokens * (2 * width + 2 * kv_heads * head_dim),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
