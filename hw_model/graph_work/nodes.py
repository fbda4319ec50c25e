"""The work of one node: standard operators and the codebook operators.

contrib.py has the operators of com.microsoft, integer_nodes.py those on integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from export.artefacts.reader import Graph, Node
from export.artefacts.states import is_recurrent
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout, Layout
from export.contract.formats.base import DOMAIN
from export.contract.formats.groups import GroupsLayout
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.contract.operators.delta_rule import GATED_DELTA_RULE, DeltaRuleLayout
from export.contract.operators.sink_attention import SINK_ATTENTION, SinkLayout
from export.contract.operators.state_space import SELECTIVE_STATE_SPACE, StateSpaceLayout
from export.contract.sparse import SPARSE_MATMUL
from hw_model.graph_work.operation import ACTIVATION_BYTES, CACHE_BYTES, Operation, Phase

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


@dataclass
class Context:
    """What the nodes of one graph have in common during one forward pass."""

    graph: Graph
    phase: Phase
    constant: dict[str, frozenset[str]] = field(default_factory=dict)  # values of weights alone: of which
    stored: dict[str, int] = field(default_factory=dict)  # bytes of a weight in the file
    makers: dict[str, Node] = field(default_factory=dict)  # the node that makes a value

    @staticmethod
    def of(graph: Graph, phase: Phase) -> Context:
        # int64 initializers are indices and shapes, not weights
        stored = {name: array.nbytes for name, array in graph.weights.items() if array.dtype != np.int64}
        makers = {name: node for node in graph.nodes for name in node.outputs}
        return Context(graph, phase, {name: frozenset((name,)) for name in graph.weights}, stored, makers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises InputError when the file does not state it."""
        info = self.graph.values.get(name)
        if info is None or info.shape is None:
            raise InputError(
                f"model.onnx: the shape of {name!r} is not stated; run ONNX shape inference on the file first"
            )
        sizes = {
            "batch_size": self.phase.sequences,
            "sequence_length": self.phase.tokens,
            "past_sequence_length": self.phase.past,
            "total_sequence_length": self.phase.total,
        }
        found = [_size(dim, sizes) if isinstance(dim, str) else dim for dim in info.shape]
        if None in found:
            raise InputError(f"model.onnx: dimension {info.shape[found.index(None)]!r} of {name!r} is unknown")
        return tuple(size for size in found if size is not None)

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def made(self, node: Node) -> int:
        """Elements of the first output; those of its inputs together where the file does not state its shape."""
        info = self.graph.values.get(node.outputs[0])
        if info is not None and info.shape is not None:
            return self.elements(node.outputs[0])
        return math.prod(np.broadcast_shapes(*(self.shape(name) for name in self.dynamic(node))))

    def dynamic(self, node: Node) -> list[str]:
        """Inputs that are not constant."""
        return [name for name in node.inputs if name and name not in self.constant]

    def weights(self, node: Node) -> frozenset[str]:
        """Weights of the file that its inputs are made of."""
        return frozenset[str]().union(*(self.constant.get(name, ()) for name in node.inputs))

    def weight_bytes(self, node: Node) -> int:
        return sum(self.stored.get(name, 0) for name in self.weights(node))

    def moved(self, node: Node) -> int:
        """Bytes of activations read and written."""
        return ACTIVATION_BYTES * (self.made(node) + sum(self.elements(name) for name in self.dynamic(node)))


def _size(dim: str, sizes: Mapping[str, int]) -> int | None:
    """A dimension by its name, or by that and a number to be added; None where it is unknown."""
    name, _, more = dim.partition(" + ")
    known = sizes.get(name)
    if not more or known is None:
        return known
    return known + int(more) if more.isascii() and more.isdigit() and len(more) < 10 else None


def operation_of(node: Node, context: Context) -> Operation:
    """Raises InputError on an operator that has no price."""
    ours = node.domain == DOMAIN
    weight_bytes = context.weight_bytes(node)
    if node.is_product or (node.op_type == "MatMul" and not node.domain):
        return _linear(node, context)
    if node.is_expert_product:
        return _experts(node, context)
    if ours and node.op_type == SPARSE_MATMUL:
        return _sparse(node, context)
    table = node.op_type == "Gather" and weight_bytes and node.inputs[0] in context.constant
    if node.is_lookup or table:
        rows = node.matrix_layout().N if ours else context.shape(node.inputs[0])[0]
        return embedding(node, context, rows, node.inputs[0 if ours else 1])
    if node.op_type == "Attention" and not node.domain:
        return _attention(node, context)
    if node.op_type == "Conv" and not node.domain:
        return _convolution(node, context)
    if ours and node.op_type == CAUSAL_CONVOLUTION:
        return _causal_convolution(node, context)
    if ours and node.op_type == GATED_DELTA_RULE:
        return _delta_rule(node, context)
    if ours and node.op_type == SELECTIVE_STATE_SPACE:
        return _state_space(node, context)
    if ours and node.op_type == SINK_ATTENTION:
        return _sink_attention(node, context)
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


def _convolution(node: Node, context: Context) -> Operation:
    """A convolution of each channel alone: a vector unit does it. A state of its input is read and written once."""
    weights = context.shape(node.inputs[1])
    if node.inputs[1] not in context.constant or node.attributes.get("group", 1) != weights[0] or weights[1] != 1:
        raise InputError(f"model.onnx: Conv {node.name} of several channels together has no cost model")
    state = CACHE_BYTES * _state_elements(context, node.inputs[0])
    return Operation(
        node.name, "convolution", vector_ops=2 * math.prod(weights[2:]) * context.made(node),
        weight_bytes=context.weight_bytes(node), cache_read_bytes=state, cache_write_bytes=state,
        activation_bytes=context.moved(node) - state,
    )  # fmt: skip


def _causal_convolution(node: Node, context: Context) -> Operation:
    """The same as an operator of ours."""
    state = CACHE_BYTES * context.elements(node.inputs[2])
    return Operation(
        node.name, "convolution", vector_ops=2 * context.shape(node.inputs[1])[-1] * context.made(node),
        weight_bytes=context.weight_bytes(node), cache_read_bytes=state, cache_write_bytes=state,
        activation_bytes=ACTIVATION_BYTES * (context.made(node) + context.elements(node.inputs[0])),
    )  # fmt: skip


def _delta_rule(node: Node, context: Context) -> Operation:
    """For each number of the state and token: what the key reads, decay and change, what the query reads.

    A vector unit does it, for the state changes with every token; a call reads and writes it once.
    """
    keys, values = context.shape(node.inputs[1])[-1], context.shape(node.inputs[2])[-1]
    try:
        layout = DeltaRuleLayout.of(node.attributes, keys, values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    tokens, state = context.phase.vectors, math.prod(layout.state)
    by_token = 7 * state + 6 * keys + 5 * values + 16 * layout.value_heads  # lengths; differences; decay and step
    moved = context.made(node) + sum(context.elements(name) for name in node.inputs[:5])
    return Operation(
        node.name, "delta rule", vector_ops=tokens * by_token, weight_bytes=context.weight_bytes(node),
        cache_read_bytes=CACHE_BYTES * state * context.phase.sequences,
        cache_write_bytes=CACHE_BYTES * state * context.phase.sequences, activation_bytes=ACTIVATION_BYTES * moved,
    )  # fmt: skip


def _state_space(node: Node, context: Context) -> Operation:
    """For each number of the state and token: decay, what the token writes, what it reads.

    A vector unit does it, as of the delta rule; a call reads and writes the state once.
    """
    states, values = context.shape(node.inputs[2])[-1], context.shape(node.inputs[0])[-1]
    try:
        layout = StateSpaceLayout.of(node.attributes, states, values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    tokens, state = context.phase.vectors, math.prod(layout.state)
    by_token = 5 * state + 3 * values + 12 * layout.heads  # times the step, what is skipped; step and decay
    moved = context.made(node) + sum(context.elements(name) for name in node.inputs[:4])
    return Operation(
        node.name, "state space", vector_ops=tokens * by_token, weight_bytes=context.weight_bytes(node),
        cache_read_bytes=CACHE_BYTES * state * context.phase.sequences,
        cache_write_bytes=CACHE_BYTES * state * context.phase.sequences, activation_bytes=ACTIVATION_BYTES * moved,
    )  # fmt: skip


def _state_elements(context: Context, name: str) -> int:
    """Numbers of the recurrent state that a value begins with; 0 for none."""
    waiting, seen, states = [name], set[str](), {info.name for info in context.graph.inputs if is_recurrent(info.name)}
    while waiting:
        if (name := waiting.pop()) in states:
            return context.elements(name)
        node = context.makers.get(name)
        if node is not None and node.name not in seen and node.op_type in ("Slice", "Concat"):
            seen.add(node.name)
            waiting += node.inputs
    return 0


def _attention(node: Node, context: Context) -> Operation:
    maker = context.makers.get(node.inputs[1])
    if maker is not None and maker.op_type == node.op_type:
        return _attention_to_earlier(node, context)
    heads, kv_heads = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    head_dim = context.shape(node.inputs[0])[-1] // heads
    window = window_of(context, node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else 0
    pairs = causal_pairs(context.phase, window)
    cached = len(node.inputs) > 4  # an encoder keeps nothing
    found = attention(node, context, heads, kv_heads, head_dim, pairs, window, cached)
    if node.attributes.get("is_causal", 0):
        return found
    both = 2 * pairs - context.phase.vectors  # what lies ahead is seen as what lies behind
    macs, vector_ops = (work // pairs * both for work in (found.macs, found.vector_ops))
    return replace(found, macs=macs, vector_ops=vector_ops, causal=False)


def _attention_to_earlier(node: Node, context: Context) -> Operation:
    """Over the keys and values of an earlier attention: its cache is read again, nothing is written."""
    _, heads, tokens, head_dim = context.shape(node.inputs[0])
    kv_heads, window = context.shape(node.inputs[1])[1], window_of(context, node.inputs[3])
    found = attention(node, context, heads, kv_heads, head_dim, causal_pairs(context.phase, window), window)
    moved = ACTIVATION_BYTES * tokens * 2 * heads * head_dim
    return replace(found, cache_write_bytes=0, activation_bytes=moved)


def _sink_attention(node: Node, context: Context) -> Operation:
    """Causal attention, and a score more for each query and head."""
    try:
        layout = SinkLayout.of(node.attributes, context.shape(node.inputs[0])[-1])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    window = window_of(context, node.inputs[3])
    pairs = causal_pairs(context.phase, window)
    found = attention(node, context, layout.heads, layout.kv_heads, layout.head_dim, pairs, window)
    more = 6 * context.phase.vectors * layout.heads
    return replace(found, vector_ops=found.vector_ops + more, weight_bytes=context.weight_bytes(node))


def causal_pairs(phase: Phase, window: int) -> int:
    """Query-key pairs of one forward pass, all sequences; window: keys a query sees at most, 0 for all."""
    seen = [min(phase.past + t + 1, window or phase.total) for t in (0, phase.tokens - 1)]
    if not window or seen[1] < window or seen[0] == seen[1]:
        return (seen[0] + seen[1]) * phase.tokens // 2 * phase.sequences
    growing = window - seen[0]  # queries before the window is full
    return ((seen[0] + window - 1) * growing // 2 + (phase.tokens - growing) * window) * phase.sequences


def attention(
    node: Node, context: Context, heads: int, kv_heads: int, head_dim: int, pairs: int, window: int = 0,
    cached: bool = True,
) -> Operation:  # fmt: skip
    """Scores, softmax and the mix of values, with the cache read once."""
    phase = context.phase
    row = CACHE_BYTES * kv_heads * head_dim if cached else 0  # one token's keys (or values)
    read = min(phase.total, window + phase.tokens - 1) if window else phase.total
    return Operation(
        node.name,
        "attention",
        macs=2 * pairs * heads * head_dim,
        vector_ops=6 * pairs * heads,  # scale, maximum, exponential (as four with the sum), division
        cache_read_bytes=2 * row * read * phase.sequences,
        cache_write_bytes=2 * row * phase.vectors,
        activation_bytes=ACTIVATION_BYTES * phase.vectors * 2 * (heads + kv_heads) * head_dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
    )


def window_of(context: Context, mask: str) -> int:
    """Keys a query may see by the mask our exporter builds (export/graph/whole/decoder.py); 0 for all."""
    waiting, seen = [mask], set()
    while waiting:
        node = context.makers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Less" and node.inputs[1] in context.graph.weights:
            return max(int(context.graph.weights[node.inputs[1]].reshape(-1)[0]), 0)
        waiting += node.inputs
    return 0
