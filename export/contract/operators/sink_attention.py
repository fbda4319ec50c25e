"""SinkAttention: causal attention whose softmax has one more score for each head, of which nothing is mixed in.

SinkAttention(Q, K, V, mask, past_key, past_value, sink) -> Y, present_key, present_value
    Q, K, V               float32 [batch, T, heads * D], keys and values [batch, T, kv_heads * D]
    mask                  bool [batch, 1, T, total], True where a query sees a key
    past_key, past_value  float32 [batch, kv_heads, past, D]; present_*: the same with the new tokens behind
    sink                  float32 [heads]
    Y[t] = sum over s of exp(score[t, s]) V[s] / (exp(sink) + sum over s of exp(score[t, s])), keys that are seen only
Attributes: q_num_heads, kv_num_heads, scale (of the products; a sink is a score as it is).

Standard Attention has no such score. A column for it in keys, values and mask would be copied with the whole cache at
every step, and the scores that Attention can give out do not say the shape of theirs where there is a past. So the body
below is made of products and sums; a query that sees no key gives zeros, as it does in the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import one_dimension
from export.contract.formats.base import DOMAIN, OPSET

if TYPE_CHECKING:
    import onnx

SINK_ATTENTION = "SinkAttention"
_INPUTS = ("Q", "K", "V", "mask", "past_key", "past_value", "sink")
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class SinkLayout:
    """What the attributes and the width of the queries say."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float

    @staticmethod
    def of(attributes: Mapping[str, Any], query_width: int) -> SinkLayout:
        """Raises KeyError, TypeError or ValueError when the attributes do not fit."""
        heads, kv_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
        if type(heads) is not int or type(kv_heads) is not int or min(heads, kv_heads) < 1 or heads % kv_heads:
            raise ValueError(f"{heads!r} heads do not share {kv_heads!r} key-value heads")
        if query_width < heads or query_width % heads:
            raise ValueError(f"queries of width {query_width} do not split into {heads} heads")
        return SinkLayout(heads, kv_heads, query_width // heads, float(attributes["scale"]))


def sink_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, past_key: np.ndarray,
    past_value: np.ndarray, sink: np.ndarray, layout: SinkLayout,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Reference of SinkAttention: (Y float32 [batch, T, heads * D], present_key, present_value)."""
    batch, tokens, _ = query.shape
    kv, repeat = layout.kv_heads, layout.heads // layout.kv_heads
    split = (batch, tokens, kv, layout.head_dim)
    keys = np.concatenate([past_key, key.reshape(split).transpose(0, 2, 1, 3)], axis=2)
    values = np.concatenate([past_value, value.reshape(split).transpose(0, 2, 1, 3)], axis=2)
    q = query.reshape(batch, tokens, kv, repeat, layout.head_dim).transpose(0, 2, 3, 1, 4)
    scores = q @ keys[:, :, None].transpose(0, 1, 2, 4, 3) * np.float32(layout.scale)
    scores = np.where(mask[:, :, None], scores, np.float32(_LOWEST))
    own = np.asarray(sink, np.float32).reshape(1, kv, repeat, 1, 1)
    top = np.maximum(scores.max(axis=-1, keepdims=True), own)
    powers = np.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True) + np.exp(own - top)
    out = powers @ values[:, :, None] / total
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, -1).astype(np.float32), keys, values


def _write(
    b: Body, query: Value, key: Value, value: Value, mask: Value, past_key: Value, past_value: Value, sink: Value
) -> tuple[Value, ...]:
    heads, kv = b.attribute("q_num_heads"), b.attribute("kv_num_heads")
    repeat = heads // kv
    by_head = one_dimension(b, [0], [0], kv, [-1])
    keys = b.Concat(past_key, b.Transpose(b.Reshape(key, by_head), perm=[0, 2, 1, 3]), axis=2)
    values = b.Concat(past_value, b.Transpose(b.Reshape(value, by_head), perm=[0, 2, 1, 3]), axis=2)
    scaled = query * b.float_attribute("scale")
    q = b.Transpose(b.Reshape(scaled, one_dimension(b, [0], [0], kv, repeat, [-1])), perm=[0, 2, 3, 1, 4])
    products = b.MatMul(q, b.Transpose(b.Unsqueeze(keys, [2]), perm=[0, 1, 2, 4, 3]), name="products")
    scores = b.named("scores", b.Where(b.Unsqueeze(mask, [2]), products, _LOWEST))
    own = b.Reshape(sink, one_dimension(b, [1], kv, repeat, [1], [1]), name="own")
    top = b.Max(b.ReduceMax(scores, [-1], keepdims=1), own, name="top")
    powers = b.Exp(scores - top, name="powers")
    total = b.ReduceSum(powers, [-1], keepdims=1) + b.Exp(own - top)
    mixed = b.MatMul(powers, b.Unsqueeze(values, [2]), name="mixed") / total
    return b.Reshape(b.Transpose(mixed, perm=[0, 3, 1, 2, 4]), [0, 0, -1]), keys, values


@cache
def sink_attention_function() -> onnx.FunctionProto:
    """FunctionProto of SinkAttention."""
    attributes, outputs = ("q_num_heads", "kv_num_heads", "scale"), ("Y", "present_key", "present_value")
    return function_proto(DOMAIN, OPSET, SINK_ATTENTION, _INPUTS, attributes, _write, outputs)
