"""Builds the ONNX graph of a causal decoder from a ModelSpec and a quantized checkpoint. One builder for all families.

The graph is built, never traced: standard operators of opset 23 plus ai.athena, inputs and outputs named as optimum and
onnxruntime-genai name them, node names that follow the Hugging Face module names.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.artefacts.checkpoint import StoredTensors
from export.artefacts.states import output_of
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.attention import AttentionLayout
from export.graph.bodies.integers import integer_function_bodies
from export.graph.gemma.per_layer import per_layer_inputs
from export.graph.growth import grown_rotations
from export.graph.integers import IntegerArithmetic
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.recurrent.convolution import token_mask
from export.graph.recurrent.parts import states
from export.graph.spec import HeadSizes, ModelSpec, Rope
from export.graph.whole.block import BlockBuilder
from export.graph.whole.context import TOTAL, Context
from export.graph.writer import Dim, GraphWriter

PAST = "past_sequence_length"


def build_decoder(spec: ModelSpec, checkpoint: StoredTensors, producer: str) -> ir.Model:
    """The complete model; weights are read lazily when it is saved.

    Raises InputError when the checkpoint lacks a tensor that the family needs or has it in another shape.
    """
    assert spec.causal and spec.final_norm
    g = GraphWriter()
    layers = Layers(g, checkpoint)
    blocks = BlockBuilder(spec, layers)
    input_ids = g.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
    attention_mask = g.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
    position_ids = g.input("position_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
    past = [_past(g, spec, layers.arithmetic, layer) for layer in range(spec.layers)]
    stateful = any(names.keeps_state for names in spec.kinds())
    own_mask = token_mask(g, input_ids, attention_mask) if stateful else None
    turns = rotations(g, spec, position_ids)
    query_turns = tuple(grown_rotations(g, spec.query_growth, turns, position_ids))
    masks = _masks(g, spec, input_ids, attention_mask)
    hidden = _embed(layers, spec, input_ids, position_ids)
    own = per_layer_inputs(layers, spec, input_ids, hidden) if spec.per_layer is not None else None
    if blocks.altup is not None:
        hidden = blocks.altup.begin(hidden)
    present: list[tuple[ir.Value, str]] = []
    caches: list[tuple[ir.Value, ...]] = []
    for layer in range(spec.layers):
        rotates = layer not in spec.layers_without_rope
        rotation, query_rotation = (
            found[spec.window(layer) is not None] if rotates else None for found in (turns, query_turns)
        )
        earlier = caches[spec.cache_layer(layer)] if spec.cache_layer(layer) != layer else None
        mask = masks.get(spec.window(layer))
        context = Context(
            mask, rotation, past[layer], earlier, query_rotation, own_mask,  # type: ignore[arg-type]
            own[layer] if own is not None else None,
        )  # fmt: skip
        hidden, cache = blocks.block(layer, hidden, context)
        caches.append(cache)
        present += [(value, output_of(str(given.name))) for value, given in zip(cache, past[layer])]
    if blocks.altup is not None:
        hidden = blocks.altup.end(hidden)
    hidden = layers.norm(
        spec.norm, hidden, spec.final_norm, "/model/norm", blocks.hidden_shape, spec.norm_epsilon, spec.norm_offset
    )
    g.output(_head(layers, spec, hidden), "logits")
    for value, name in present:
        g.output(value, name)
    bodies = layers.bodies()
    if layers.arithmetic != IntegerArithmetic():
        bodies += integer_function_bodies()
    functions = [ir.serde.deserialize_function(f) for f in bodies]
    return g.model(spec.model_type, {"": OPSET, DOMAIN: DOMAIN_VERSION}, IR_VERSION, functions, producer)


def _past(g: GraphWriter, spec: ModelSpec, arithmetic: IntegerArithmetic, layer: int) -> tuple[ir.Value, ...]:
    """The inputs of a layer that carry what earlier calls left: keys and values first, then its states."""
    heads = spec.heads_of(layer)
    cache_type, row = cache_row(heads, arithmetic)
    shape: list[Dim] = [BATCH, heads.kv_heads, PAST, row]
    caches = spec.names_of_layer(layer).attends and spec.cache_layer(layer) == layer
    kinds = ("key", "value") if caches else ()
    cached = [g.input(f"past_key_values.{layer}.{kind}", cache_type, shape) for kind in kinds]
    return (*cached, *states(g, spec, layer))


def cache_row(heads: HeadSizes, arithmetic: IntegerArithmetic) -> tuple[ir.DataType, int]:
    """Element type of a cached key or value of one head, and how many elements it has."""
    if arithmetic.cache is None:
        return ir.DataType.FLOAT, heads.head_dim
    try:
        layout = AttentionLayout(
            heads.heads, heads.kv_heads, heads.head_dim,
            replace(arithmetic.cache, group_size=min(arithmetic.cache.group_size, heads.head_dim)), 1.0,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"the key-value cache cannot be razored: {error}") from None
    return ir.DataType.UINT8, layout.row_bytes


def rotations(g: GraphWriter, spec: ModelSpec, position_ids: ir.Value) -> tuple:  # type: ignore[type-arg]
    """cos and sin for layers that see everything and for those with a window; (None, None) without a rotation.

    position_ids: int64 [batch, sequence].
    """
    if spec.rope is None:
        return None, None
    column = _position_column(g, position_ids)
    everywhere = _rotation(g, spec.rope, "rope", column)
    return everywhere, everywhere if spec.local_rope is None else _rotation(g, spec.local_rope, "local_rope", column)


def _position_column(g: GraphWriter, position_ids: ir.Value) -> ir.Value:
    """Positions as float [batch, sequence, 1]."""
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    positions = g.op("Cast", "/model/rope/positions", [position_ids], [BATCH, SEQUENCE], to=ir.DataType.FLOAT)
    return g.op("Unsqueeze", "/model/rope/column", [positions, last], [BATCH, SEQUENCE, 1])


def _rotation(g: GraphWriter, rope: Rope, name: str, column: ir.Value) -> tuple[ir.Value, ir.Value]:
    """cos and sin of every position, float [batch, sequence, rotated / 2], computed in the graph: no table."""
    shape: list[Dim] = [BATCH, SEQUENCE, len(rope.inverse_frequencies)]
    frequencies = g.constant(f"{name}.inverse_frequencies", np.asarray(rope.inverse_frequencies, np.float32))
    angle = g.op("Mul", f"/model/{name}/angle", [column, frequencies], shape)
    pair = tuple(g.op(kind, f"/model/{name}/{kind.lower()}", [angle], shape) for kind in ("Cos", "Sin"))
    if rope.attention_factor != 1.0:
        factor = g.constant(f"{name}.attention_factor", np.asarray(rope.attention_factor, np.float32))
        pair = tuple(g.op("Mul", f"/model/{name}/{n}_scaled", [v, factor], shape) for n, v in zip("cs", pair))
    return pair  # type: ignore[return-value]


def _masks(
    g: GraphWriter, spec: ModelSpec, input_ids: ir.Value, attention_mask: ir.Value
) -> dict[int | None, ir.Value]:
    """Per window width: which keys a query may see, bool [batch, 1, sequence, total]. True means visible.

    onnxruntime wants the query dimension in full, so the causal part is spelled out beside `is_causal`.
    """
    widths = {spec.window(i) for i in range(spec.layers) if spec.names_of_layer(i).attends}
    if not widths:
        return {}
    boolean, long, at = ir.DataType.BOOL, ir.DataType.INT64, "/model/mask"
    zero, one = (g.constant(n, np.asarray(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
    first, second = (g.constant(f"axis.{n}", np.asarray([v], np.int64)) for n, v in (("first", 0), ("second", 1)))
    axes = g.constant("axis.heads_and_queries", np.asarray([1, 2], np.int64))
    keep = g.op("Cast", f"{at}/not_padding", [attention_mask], [BATCH, TOTAL], boolean, to=boolean)
    visible = g.op("Unsqueeze", f"{at}/visible", [keep, axes], [BATCH, 1, 1, TOTAL], boolean)
    total_1d = g.op("Shape", f"{at}/total_1d", [attention_mask], [1], long, start=1, end=2)
    total = g.op("Squeeze", f"{at}/total", [total_1d, first], [], long)
    sequence_1d = g.op("Shape", f"{at}/sequence_1d", [input_ids], [1], long, start=1, end=2)
    sequence = g.op("Squeeze", f"{at}/sequence", [sequence_1d, first], [], long)
    past = g.op("Sub", f"{at}/past", [total, sequence], [], long)
    keys = g.op("Range", f"{at}/keys", [zero, total, one], [TOTAL], long)
    queries = g.op("Range", f"{at}/queries", [past, total, one], [SEQUENCE], long)
    column = g.op("Unsqueeze", f"{at}/column", [queries, second], [SEQUENCE, 1], long)
    grid: list[Dim] = [SEQUENCE, TOTAL]
    causal = g.op("LessOrEqual", f"{at}/causal", [keys, column], grid, boolean)
    masks: dict[int | None, ir.Value] = {}
    for width in sorted(widths, key=lambda w: w or 0):
        allowed, name = causal, f"{at}/{'all' if width is None else f'window_{width}'}"
        if width is not None:
            limit = g.constant(f"mask.window_{width}", np.asarray(width, np.int64))
            distance = g.op("Sub", f"{name}/distance", [column, keys], grid, long)
            near = g.op("Less", f"{name}/near", [distance, limit], grid, boolean)
            allowed = g.op("And", f"{name}/allowed", [causal, near], grid, boolean)
        masks[width] = g.op("And", name, [visible, allowed], [BATCH, 1, SEQUENCE, TOTAL], boolean)
    return masks


def _embed(layers: Layers, spec: ModelSpec, input_ids: ir.Value, position_ids: ir.Value) -> ir.Value:
    width = spec.hidden_size
    hidden = layers.lookup(spec.embedding, input_ids, "/model/embed_tokens", (spec.vocab_size, width))
    hidden = layers.scaled(hidden, spec.embedding_scale, "/model/embed_scaled", width)
    if spec.position_embedding is None:
        return hidden
    shape = (spec.context_length, width)
    places = layers.lookup(spec.position_embedding, position_ids, "/model/embed_positions", shape)
    return layers.g.op("Add", "/model/embed", [hidden, places], [BATCH, SEQUENCE, width])


def _head(layers: Layers, spec: ModelSpec, hidden: ir.Value) -> ir.Value:
    module = spec.embedding if spec.tied_head or not spec.head else spec.head
    bias = f"{spec.head or module}.bias"  # of the head, whose matrix may be the embedding's
    logits = layers.matmul(module, hidden, "/lm_head", spec.hidden_size, spec.vocab_size, bias)
    logits = layers.scaled(logits, spec.logit_scale, "/lm_head_scaled", spec.vocab_size)
    return layers.softcap(logits, spec.logit_softcap, "/lm_head_softcap", spec.vocab_size)
