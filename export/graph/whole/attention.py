"""Attention of any family as ONNX nodes: from the normed stream to what is added to it, cache included."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.attention import AttentionLayout
from export.contract.operators.integers import SDR_ATTENTION, format_attributes
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.graph.gemma.shared_keys import attend_to_earlier
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.spec import ModelSpec
from export.graph.whole.context import TOTAL, Context
from export.graph.whole.linear import factored, linear
from export.graph.writer import Dim


class AttentionLayers:
    """Writes the attentions of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g
        self._linear = partial(linear, layers, spec)

    def attend(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        spec, at, heads = self.spec, f"/model/layers.{layer}/attention", self.spec.heads_of(layer)
        if context.earlier is not None:
            return self._over_earlier(layer, normed, context), ()
        normed = self.layers.scaled(normed, spec.attention_input_scale, f"{at}/scaled_input", spec.hidden_size)
        query, key, value, gate = self._query_key_value(layer, normed)
        if not spec.norm_after_rope:
            query, key = self._head_norms(layer, query, key)
        if context.rotation is not None:
            turn = context.query_rotation or context.rotation
            query = self._rotate(query, f"{at}/rotate_query", heads.heads, heads.head_dim, turn)
            key = self._rotate(key, f"{at}/rotate_key", heads.kv_heads, heads.head_dim, context.rotation)
        if spec.norm_after_rope:
            query, key = self._head_norms(layer, query, key)
        if spec.names_of_layer(layer).value_norm:
            value = self._norm_of_heads(f"{at}/value_norm", None, value, heads.kv_heads, heads.head_dim)
        out, cache = self._attended(layer, (query, key, value), context)
        width = heads.queries
        if gate is not None:
            shape: list[Dim] = [BATCH, SEQUENCE, width]
            share = self.layers.activate("sigmoid", gate, f"{at}/gate", shape)
            out = self.g.op("Mul", f"{at}/gated", [out, share], shape)
        output = spec.names_of_layer(layer).attention_output
        assert output is not None
        made = self._linear(layer, output, out, width, spec.hidden_size)
        made = self.layers.scaled(made, spec.attention_output_scale, f"{at}/scaled_output", spec.hidden_size)
        return made, cache

    def _over_earlier(self, layer: int, normed: ir.Value, context: Context) -> ir.Value:
        """What queries of this layer give over the keys and values of an earlier one."""
        spec, at, heads = self.spec, f"/model/layers.{layer}/attention", self.spec.heads_of(layer)
        names = spec.names_of_layer(layer)
        assert names.query and names.attention_output and context.mask is not None
        assert context.earlier is not None and context.query_rotation is None
        if self.layers.arithmetic.cache is not None:
            raise InputError(f"{self.layers.checkpoint.folder}: keys and values that layers share cannot be razored")
        query = self._linear(layer, names.query, normed, spec.hidden_size, heads.queries)
        query = self._head_norm(layer, names.query_norm, query, heads.heads)
        if context.rotation is not None:
            query = self._rotate(query, f"{at}/rotate_query", heads.heads, heads.head_dim, context.rotation)
        attributes = self._score_attributes(layer)
        out = attend_to_earlier(self.g, at, query, context.earlier, context.mask, heads, attributes)
        return self._linear(layer, names.attention_output, out, heads.queries, spec.hidden_size)

    def _score_attributes(self, layer: int) -> dict[str, float]:
        spec = self.spec
        scale = spec.attention_scale or 1 / math.sqrt(spec.heads_of(layer).head_dim)
        return {"scale": scale} | ({} if spec.attention_softcap is None else {"softcap": spec.attention_softcap})

    def _attended(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """What all heads give, float32 [batch, sequence, heads * head_dim], and keys and values for the cache."""
        spec, heads = self.spec, self.spec.heads_of(layer)
        shapes: list[list[Dim]] = [[BATCH, SEQUENCE, heads.queries]]
        if context.past is not None:
            shapes += [[BATCH, heads.kv_heads, TOTAL, heads.head_dim]] * 2
        attributes = self._score_attributes(layer)
        if self.layers.arithmetic.cache is not None and context.past is not None:
            out, *cache = self._razored_attention(layer, qkv, context, attributes)
            return out, tuple(cache)
        if spec.names_of_layer(layer).sinks is not None:
            out, *cache = self._sink_attention(layer, qkv, context, shapes)
            return out, tuple(cache)
        out, *cache = self.g.op(
            "Attention",
            f"/model/layers.{layer}/attention",
            [*qkv, context.mask, *(context.past or ())],
            shapes,
            attributes=attributes,
            q_num_heads=spec.heads,
            kv_num_heads=heads.kv_heads,
            is_causal=int(context.past is not None or spec.looks_back_only),
        )
        return out, tuple(cache)

    def _sink_attention(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context, shapes: list[list[Dim]]
    ) -> tuple[ir.Value, ...]:
        """Attention with a score of each head beside those of its keys; outputs as of _razored_attention."""
        spec, layers, names = self.spec, self.layers, self.spec.names_of_layer(layer)
        assert names.sinks is not None and context.past is not None and spec.attention_softcap is None
        name = spec.prefix(layer) + names.sinks
        sinks = layers.vector(name)
        if tuple(sinks.shape or ()) != (spec.heads,):
            raise InputError(f"{layers.checkpoint.folder}: {name} is {sinks.shape}, expected {[spec.heads]}")
        layers.has_sinks = True
        scale = spec.attention_scale or 1 / math.sqrt(spec.head_dim)
        outputs: tuple[ir.Value, ...] = self.g.op(
            SINK_ATTENTION, f"/model/layers.{layer}/attention", [*qkv, context.mask, *context.past, sinks], shapes,
            domain=DOMAIN, q_num_heads=spec.heads, kv_num_heads=spec.kv_heads, scale=scale,
        )  # fmt: skip
        return outputs

    def _razored_attention(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context, attributes: dict[str, float]
    ) -> tuple[ir.Value, ...]:
        """Attention over a razored cache: its output, and keys and values with the new tokens behind."""
        g, spec, layers, heads = self.g, self.spec, self.layers, self.spec.heads_of(layer)
        form = layers.arithmetic.cache
        assert form is not None and context.past is not None
        if spec.names_of_layer(layer).sinks is not None:
            raise InputError(f"{layers.checkpoint.folder}: attention with sinks has no razored cache")
        chosen: dict[str, Any] = {
            "q_num_heads": heads.heads, "kv_num_heads": heads.kv_heads, "scale": attributes["scale"],
            "softcap": attributes.get("softcap", 0.0), **format_attributes(form),
        }  # fmt: skip
        units = []
        for name in ("key_unit", "value_unit"):
            full = spec.prefix(layer) + name
            units.append(g.constant(full, layers.unit(full, heads.kv_heads)))
        row_bytes = AttentionLayout.of(chosen, heads.queries).row_bytes
        cached: list[Dim] = [BATCH, heads.kv_heads, TOTAL, row_bytes]
        outputs: tuple[tuple[str, list[Dim], ir.DataType], ...] = (
            ("output_0", [BATCH, SEQUENCE, heads.queries], ir.DataType.FLOAT),
            ("output_1", cached, ir.DataType.UINT8),
            ("output_2", cached, ir.DataType.UINT8),
        )
        inputs = [*qkv, context.mask, *context.past, *units]
        return g.typed_op(SDR_ATTENTION, f"/model/layers.{layer}/attention", inputs, outputs, DOMAIN, chosen)

    def _query_key_value(self, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
        """Queries, keys and values, and what the heads' outputs are gated with where the family has that."""
        g, spec, names = self.g, self.spec, self.spec.names_of_layer(layer)
        at, heads = f"/model/layers.{layer}/attention", spec.heads_of(layer)
        q_width, kv_width = heads.queries, heads.keys
        if names.fused_qkv is None:
            assert names.query and names.key and (names.value or names.values_are_keys)
            read, columns = factored(
                self.layers, spec, layer, names.shared.query_key, names.shared.query_key_rank, normed
            )
            query, gate = self._gated_query(layer, names.query, read, columns)
            key = self._linear(layer, names.key, read, columns, kv_width)
            value = self._linear(layer, names.value, normed, spec.hidden_size, kv_width) if names.value else key
            return query, key, value, gate
        total = q_width + 2 * kv_width
        fused = self._linear(layer, names.fused_qkv, normed, spec.hidden_size, total)
        if spec.fused_qkv_by_head:
            by_head = np.arange(total, dtype=np.int64).reshape(spec.heads, 3, spec.head_dim)
            order = g.constant("attention.qkv_order", by_head.transpose(1, 0, 2).reshape(-1))
            fused = g.op("Gather", f"{at}/qkv_in_order", [fused, order], [BATCH, SEQUENCE, total], axis=2)
        sizes = g.constant("attention.qkv_widths", np.asarray([q_width, kv_width, kv_width], np.int64))
        shapes = [[BATCH, SEQUENCE, w] for w in (q_width, kv_width, kv_width)]
        query, key, value = g.op("Split", f"{at}/split_qkv", [fused, sizes], shapes, axis=-1)
        return query, key, value, None

    def _gated_query(self, layer: int, module: str, read: ir.Value, columns: int) -> tuple[ir.Value, ir.Value | None]:
        """Queries, and their gate where the layer gives each head both, one behind the other."""
        g, spec, at = self.g, self.spec, f"/model/layers.{layer}/attention"
        width = spec.heads_of(layer).queries
        if not spec.query_gate:
            return self._linear(layer, module, read, columns, width), None
        both = self._linear(layer, module, read, columns, 2 * width)
        by_head = np.arange(2 * width, dtype=np.int64).reshape(spec.heads, 2, spec.head_dim)
        order = g.constant("attention.query_order", by_head.transpose(1, 0, 2).reshape(-1))
        both = g.op("Gather", f"{at}/query_in_order", [both, order], [BATCH, SEQUENCE, 2 * width], axis=2)
        sizes = g.constant("attention.query_widths", np.asarray([width, width], np.int64))
        query, gate = g.op("Split", f"{at}/split_query", [both, sizes], [[BATCH, SEQUENCE, width]] * 2, axis=-1)
        return query, gate

    def _rotate(
        self, value: ir.Value, name: str, heads: int, head_dim: int, rotation: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        rotated = 2 * int(rotation[0].shape[-1])  # type: ignore[index, arg-type]
        chosen = {} if rotated == head_dim else {"rotary_embedding_dim": rotated}
        chosen |= {"interleaved": 1} if self.spec.rope_interleaved else {}
        shape: list[Dim] = [BATCH, SEQUENCE, heads * head_dim]
        return self.g.op("RotaryEmbedding", name, [value, *rotation], shape, attributes=chosen, num_heads=heads)

    def _head_norms(self, layer: int, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        heads, names = self.spec.heads_of(layer), self.spec.names_of_layer(layer)
        normed = self._head_norm(layer, names.query_norm, query, heads.heads)
        return normed, self._head_norm(layer, names.key_norm, key, heads.kv_heads)

    def _head_norm(self, layer: int, module: str | None, value: ir.Value, heads: int) -> ir.Value:
        """RMSNorm on queries or keys [batch, sequence, heads * head_dim], over each head or over all of them."""
        if module is None:
            return value
        spec, head_dim = self.spec, self.spec.heads_of(layer).head_dim
        name, full = f"/model/layers.{layer}/{module}", self.spec.prefix(layer) + module
        if spec.norm_each_head:
            return self._norm_of_heads(name, full, value, heads, head_dim)
        shape: list[Dim] = [BATCH, SEQUENCE, heads * head_dim]
        return self.layers.norm("rms", value, full, name, shape, spec.norm_epsilon, spec.norm_offset)

    def _norm_of_heads(self, name: str, module: str | None, value: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """RMSNorm over each head of [batch, sequence, heads * head_dim]; module: full name, None without weights."""
        g, spec, width = self.g, self.spec, heads * head_dim
        split: list[Dim] = [BATCH, SEQUENCE, heads, head_dim]
        by_head = g.constant(f"shape.heads_{heads}_{head_dim}", np.asarray([0, 0, heads, head_dim], np.int64))
        flat = g.constant(f"shape.width_{width}", np.asarray([0, 0, width], np.int64))
        parts = g.op("Reshape", f"{name}/split_heads", [value, by_head], split)
        if module is None:
            ones = g.constant(f"norm.ones_{head_dim}", np.ones(head_dim, np.float32))
            normed = g.op("RMSNormalization", name, [parts, ones], split, epsilon=spec.norm_epsilon, axis=-1)
        else:
            normed = self.layers.norm("rms", parts, module, name, split, spec.norm_epsilon, spec.norm_offset)
        out: ir.Value = g.op("Reshape", f"{name}/join_heads", [normed, flat], [BATCH, SEQUENCE, width])
        return out
