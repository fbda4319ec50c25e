"""GatedDeltaRule: linear attention whose state decays, and forgets what it held under a key that comes again.

GatedDeltaRule(Q, K, V, decay, beta, rate, bias, past_state) -> Y, present_state
    Q, K                       float32 [batch, T, key_heads * dk], not normalised yet
    V                          float32 [batch, T, value_heads * dv]
    decay, beta                float32 [batch, T, value_heads], before their activations
    rate, bias                 float32 [value_heads]
    past_state, present_state  float32 [batch, value_heads, dk, dv]
    Y                          float32 [batch, T, value_heads * dv]
for each token and head, with q and k of unit length (q besides divided by the root of dk):
    S = exp(rate * softplus(decay + bias)) * S
    S = S + k outer (sigmoid(beta) * (v - k @ S))
    Y = q @ S
Attributes: key_heads, value_heads (a multiple: neighbours share a key head), epsilon (added to squared lengths).

Gated DeltaNet (arXiv 2412.06464). LinearAttention of opset 27 with the update rule gated_delta is its inner part, which
checkers and runtimes of opset 23 refuse; the body here is a Scan over the tokens.
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

GATED_DELTA_RULE = "GatedDeltaRule"
_INPUTS = ("Q", "K", "V", "decay", "beta", "rate", "bias", "past_state")


@dataclass(frozen=True)
class DeltaRuleLayout:
    """What the attributes and the widths of keys and values say."""

    key_heads: int
    value_heads: int
    key_dim: int  # of a head
    value_dim: int
    epsilon: float

    @staticmethod
    def of(attributes: Mapping[str, Any], key_width: int, value_width: int) -> DeltaRuleLayout:
        """Raises KeyError, TypeError or ValueError when the attributes do not fit."""
        keys, values, epsilon = attributes["key_heads"], attributes["value_heads"], float(attributes["epsilon"])
        if type(keys) is not int or type(values) is not int or min(keys, values) < 1 or values % keys:
            raise ValueError(f"{values!r} heads of values do not share {keys!r} of keys")
        if min(key_width // keys, value_width // values) < 1 or key_width % keys or value_width % values:
            raise ValueError(f"widths of {key_width} and {value_width} do not split into the heads")
        if not 0 <= epsilon < np.inf:
            raise ValueError(f"epsilon is {epsilon}")
        return DeltaRuleLayout(keys, values, key_width // keys, value_width // values, epsilon)

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of the state of one sequence."""
        return self.value_heads, self.key_dim, self.value_dim


def gated_delta_rule(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, decay: np.ndarray, beta: np.ndarray, rate: np.ndarray,
    bias: np.ndarray, past: np.ndarray, layout: DeltaRuleLayout,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Reference of GatedDeltaRule: (Y, present_state). Raises ValueError where the shapes do not fit."""
    batch, tokens, _ = value.shape
    heads, shared = layout.value_heads, layout.value_heads // layout.key_heads
    if past.shape != (batch, *layout.state):
        raise ValueError("the state does not fit the heads")
    split = (batch, tokens, layout.key_heads, layout.key_dim)
    q, k = (np.repeat(_unit(x.reshape(split), layout.epsilon), shared, axis=2) for x in (query, key))
    q, v = q / np.float32(np.sqrt(layout.key_dim)), value.reshape(batch, tokens, heads, layout.value_dim)
    gate = np.exp(rate * np.logaddexp(np.float32(0), decay + bias)).astype(np.float32)
    step = _sigmoid(beta)
    out, state = np.empty(v.shape, np.float32), past.astype(np.float32)
    for t in range(tokens):
        state = state * gate[:, t, :, None, None]
        held = (k[:, t, :, None] @ state)[:, :, 0]
        delta = (v[:, t] - held) * step[:, t, :, None]
        state = state + k[:, t, :, :, None] * delta[:, :, None]
        out[:, t] = (q[:, t, :, None] @ state)[:, :, 0]
    return out.reshape(value.shape), state


def _unit(rows: np.ndarray, epsilon: float) -> np.ndarray:
    return rows / np.sqrt(np.sum(np.square(rows), axis=-1, keepdims=True) + np.float32(epsilon))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exactly zero for very negative numbers
        return np.float32(1.0) / (np.float32(1.0) + np.exp(-x))


def _write(
    b: Body, query: Value, key: Value, value: Value, decay: Value, beta: Value, rate: Value, bias: Value, past: Value
) -> tuple[Value, ...]:
    heads, key_heads = b.attribute("value_heads"), b.attribute("key_heads")

    def unit(rows: Value) -> Value:
        """Of every head of keys, float32 [T, batch, value_heads, 1, dk]: as many as there are heads of values."""
        split = b.Reshape(rows, one_dimension(b, [0], [0], key_heads, [1], [-1]))
        squares = b.ReduceSum(split * split, [-1], keepdims=1)
        scaled = split / b.Sqrt(squares + b.float_attribute("epsilon"))
        repeated = b.Expand(scaled, one_dimension(b, [1], [1], [1], heads // key_heads, [1]))
        return b.Transpose(b.Reshape(repeated, one_dimension(b, [0], [0], heads, [1], [-1])), perm=[1, 0, 2, 3, 4])

    def by_token(rows: Value) -> Value:
        """float32 [T, batch, value_heads, 1, columns of a head]."""
        return b.Transpose(b.Reshape(rows, one_dimension(b, [0], [0], heads, [1], [-1])), perm=[1, 0, 2, 3, 4])

    keys, size = unit(key), b.Shape(past, start=2, end=3).astype("float32")
    gate = b.Exp(by_token(b.Softplus(decay + bias) * rate))
    rows = [
        unit(query) / b.Sqrt(size), keys, b.Transpose(keys, perm=[0, 1, 2, 4, 3]), by_token(value), gate,
        by_token(b.Sigmoid(beta)),
    ]  # fmt: skip
    state, out = b.scan([past], rows, _token)
    turned = b.Transpose(out, perm=[1, 0, 2, 3, 4])
    return b.Reshape(turned, b.Shape(value), name="joined"), state


def _token(
    b: Body, state: Value, query: Value, key: Value, key_column: Value, value: Value, gate: Value, step: Value
) -> tuple[Value, Value]:
    decayed = state * gate
    delta = (value - b.MatMul(key, decayed)) * step
    after = decayed + key_column * delta
    return after, b.MatMul(query, after)


@cache
def delta_rule_function() -> onnx.FunctionProto:
    """FunctionProto of GatedDeltaRule."""
    attributes, outputs = ("key_heads", "value_heads", "epsilon"), ("Y", "present_state")
    return function_proto(DOMAIN, OPSET, GATED_DELTA_RULE, _INPUTS, attributes, _write, outputs)
