"""Builds the ONNX graph of an encoder: every token sees every token, no cache; states of all tokens and of the text.

Inputs input_ids, attention_mask and, where the family has segments, token_type_ids; outputs last_hidden_state and
sentence_embedding, as optimum and sentence-transformers name them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.artefacts.checkpoint import StoredTensors
from export.contract.formats.codebook import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.graph.block import BlockBuilder, Context
from export.graph.bodies.codebook import function_bodies
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.pooling import Pooling, pool
from export.graph.spec import ModelSpec
from export.graph.writer import Dim, GraphWriter

BOOL, LONG = ir.DataType.BOOL, ir.DataType.INT64


def build_encoder(spec: ModelSpec, checkpoint: StoredTensors, pooling: Pooling, producer: str) -> ir.Model:
    """The complete model; weights are read lazily when it is saved.

    Raises InputError when the checkpoint lacks a tensor that the family needs or has it in another shape.
    """
    g = GraphWriter()
    layers = Layers(g, checkpoint)
    blocks = BlockBuilder(spec, layers)
    input_ids = g.input("input_ids", LONG, [BATCH, SEQUENCE])
    attention_mask = g.input("attention_mask", LONG, [BATCH, SEQUENCE])
    segments = None
    if spec.token_types and spec.token_type_count > 1:
        segments = g.input("token_type_ids", LONG, [BATCH, SEQUENCE])
    hidden = _embed(layers, spec, input_ids, attention_mask, segments)
    context = Context(_mask(g, attention_mask))
    for layer in range(spec.layers):
        hidden, _ = blocks.block(layer, hidden, context)
    g.output(hidden, "last_hidden_state")
    g.output(pool(g, pooling, hidden, attention_mask, spec.hidden_size), "sentence_embedding")
    bodies = function_bodies() + layers.extra_bodies()
    functions = [ir.serde.deserialize_function(f) for f in bodies]
    return g.model(spec.model_type, {"": OPSET, DOMAIN: DOMAIN_VERSION}, IR_VERSION, functions, producer)


def _mask(g: GraphWriter, attention_mask: ir.Value) -> ir.Value:
    """Which keys a query may see, bool [batch, 1, sequence, sequence]; onnxruntime wants the queries in full."""
    at = "/model/mask"
    axes = g.constant("axis.heads_and_queries", np.asarray([1, 2], np.int64))
    keep = g.op("Cast", f"{at}/not_padding", [attention_mask], [BATCH, SEQUENCE], BOOL, to=BOOL)
    visible = g.op("Unsqueeze", f"{at}/visible", [keep, axes], [BATCH, 1, 1, SEQUENCE], BOOL)
    length = g.op("Shape", f"{at}/length", [attention_mask], [1], LONG, start=1, end=2)
    one = g.constant("mask.one", np.asarray([1], np.int64))
    shape = g.op("Concat", f"{at}/shape", [one, one, length, one], [4], LONG, axis=0)
    return g.op("Expand", at, [visible, shape], [BATCH, 1, SEQUENCE, SEQUENCE], BOOL)


def _embed(
    layers: Layers, spec: ModelSpec, input_ids: ir.Value, attention_mask: ir.Value, segments: ir.Value | None
) -> ir.Value:
    g, width = layers.g, spec.embedding_width
    shape: list[Dim] = [BATCH, SEQUENCE, width]
    tables = spec.outside()
    hidden = layers.lookup(spec.embedding, input_ids, "/model/embed_tokens", tables[spec.embedding])
    if spec.token_types:
        ids = segments or g.constant("segment.first", np.asarray([[0]], np.int64))
        types = layers.lookup(spec.token_types, ids, "/model/embed_segments", tables[spec.token_types])
        hidden = g.op("Add", "/model/embed_with_segments", [hidden, types], shape)
    if spec.position_embedding:
        ids = _positions(g, spec, attention_mask)
        places = layers.lookup(spec.position_embedding, ids, "/model/embed_positions", tables[spec.position_embedding])
        hidden = g.op("Add", "/model/embed_with_positions", [hidden, places], shape)
    if spec.embedding_norm:
        hidden = layers.norm(spec.norm, hidden, spec.embedding_norm, "/model/embed_norm", shape, spec.norm_epsilon)
    if spec.embedding_projection:
        hidden = layers.matmul(spec.embedding_projection, hidden, "/model/embed_projection", width, spec.hidden_size)
    return hidden


def _positions(g: GraphWriter, spec: ModelSpec, attention_mask: ir.Value) -> ir.Value:
    """Position of every token: its place [1, sequence], or the number of tokens before it that are not padding."""
    at, one = "/model/positions", g.constant("one", np.asarray(1, np.int64))
    zero, first = g.constant("zero", np.asarray(0, np.int64)), g.constant("axis.first", np.asarray([0], np.int64))
    if spec.positions_skip_padding:
        shape: list[Dim] = [BATCH, SEQUENCE]
        counted = g.op("CumSum", f"{at}/counted", [attention_mask, one], shape, LONG)
        before = g.op("Sub", f"{at}/before", [counted, one], shape, LONG)
        return g.op("Max", at, [before, zero], shape, LONG)
    length_1d = g.op("Shape", f"{at}/length_1d", [attention_mask], [1], LONG, start=1, end=2)
    length = g.op("Squeeze", f"{at}/length", [length_1d, first], [], LONG)
    places = g.op("Range", f"{at}/places", [zero, length, one], [SEQUENCE], LONG)
    return g.op("Unsqueeze", at, [places, first], [1, SEQUENCE], LONG)
