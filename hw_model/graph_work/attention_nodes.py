"""The work of attention over a key-value cache; sparse_attention.py has the one that reads some of its pages."""

from __future__ import annotations

from dataclasses import replace

from export.artefacts.graph import Node
from export.contract.operators.sink_attention import SinkLayout
from hw_model.graph_work.context import Context
from hw_model.graph_work.operation import ACTIVATION_BYTES, CACHE_BYTES, Operation, Phase


def standard_attention(node: Node, context: Context) -> Operation:
    """The operator Attention of ONNX."""
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


def sink_attention(node: Node, context: Context) -> Operation:
    """Causal attention, and a score more for each query and head."""
    layout = node.attributes_as(SinkLayout.of, context.shape(node.inputs[0])[-1])
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
