"""Builds the ONNX graph of an encoder: all tokens at once, no cache; states of all tokens and of the text.

Inputs input_ids, attention_mask and, where the family has segments, token_type_ids; outputs last_hidden_state and
sentence_embedding, as optimum and sentence-transformers name them, or scores of a model that ranks pairs of texts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.artefacts.checkpoint import StoredTensors
from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.pooling import pool
from export.graph.scores import score
from export.graph.sentence_modules import Pooling
from export.graph.spec import ModelSpec
from export.graph.visibility import LONG, encoder_masks, places
from export.graph.whole.block import BlockBuilder
from export.graph.whole.context import Context
from export.graph.whole.decoder import rotations
from export.graph.writer import Dim, GraphWriter


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
    turns = rotations(g, spec, _places_of_all(g, attention_mask)) if spec.rope else (None, None)
    masks = encoder_masks(g, spec, attention_mask)
    for layer in range(spec.layers):
        window = spec.window(layer)
        rotation = turns[window is not None] if layer not in spec.layers_without_rope else None
        hidden, _ = blocks.block(layer, hidden, Context(masks[window], rotation))
    if spec.final_norm:
        shape = blocks.hidden_shape
        hidden = layers.norm(
            spec.norm, hidden, spec.final_norm, "/model/norm", shape, spec.norm_epsilon, spec.norm_offset
        )
    g.output(hidden, "last_hidden_state")
    if spec.scores:
        g.output(score(layers, spec, hidden, attention_mask), "scores")
    else:
        g.output(pool(layers, pooling, hidden, attention_mask, spec.hidden_size), "sentence_embedding")
    functions = [ir.serde.deserialize_function(f) for f in layers.bodies()]
    return g.model(spec.model_type, {"": OPSET, DOMAIN: DOMAIN_VERSION}, IR_VERSION, functions, producer)


def _embed(
    layers: Layers, spec: ModelSpec, input_ids: ir.Value, attention_mask: ir.Value, segments: ir.Value | None
) -> ir.Value:
    g, width = layers.g, spec.embedding_width
    shape: list[Dim] = [BATCH, SEQUENCE, width]
    tables = spec.outside()
    hidden = layers.lookup(spec.embedding, input_ids, "/model/embed_tokens", tables[spec.embedding])
    hidden = layers.scaled(hidden, spec.embedding_scale, "/model/embed_scaled", width)
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
    at = "/model/positions"
    if spec.positions_skip_padding:
        zero, one = (g.constant(n, np.asarray(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
        shape: list[Dim] = [BATCH, SEQUENCE]
        counted = g.op("CumSum", f"{at}/counted", [attention_mask, one], shape, LONG)
        before = g.op("Sub", f"{at}/before", [counted, one], shape, LONG)
        return g.op("Max", at, [before, zero], shape, LONG)
    first = g.constant("axis.first", np.asarray([0], np.int64))
    return g.op("Unsqueeze", at, [places(g, attention_mask), first], [1, SEQUENCE], LONG)


def _places_of_all(g: GraphWriter, attention_mask: ir.Value) -> ir.Value:
    """Its place for every token of the batch, padding or not: int64 [batch, sequence]."""
    shape = g.op("Shape", "/model/rope/shape", [attention_mask], [2], LONG)
    return g.op("Expand", "/model/rope/places", [places(g, attention_mask), shape], [BATCH, SEQUENCE], LONG)
