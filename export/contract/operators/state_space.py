"""SelectiveStateSpace: linear attention whose state decays by a number that each token chooses for each head.

SelectiveStateSpace(X, step, B, C, rate, bias, skip, past_state) -> Y, present_state
    X                          float32 [batch, T, heads * dv]
    step                       float32 [batch, T, heads], before its activation
    B, C                       float32 [batch, T, groups * n]
    rate, bias, skip           float32 [heads]
    past_state, present_state  float32 [batch, heads, n, dv]
    Y                          float32 [batch, T, heads * dv]
for each token and head, with B and C of the head's group:
    d = softplus(step + bias), at least `least` and at most `most`
    S = exp(rate * d) * S + B outer (d * X)
    Y = C @ S + skip * X
Attributes: heads, groups (heads are a multiple: neighbours share B and C), least, most.

The state space of Mamba-2 (arXiv 2405.21060). LinearAttention of opset 27 with the update rule gated is its inner part,
which checkers and runtimes of opset 23 refuse; the body here is a Scan over the tokens.
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

SELECTIVE_STATE_SPACE = "SelectiveStateSpace"
LARGEST = float(np.finfo(np.float32).max)  # for `most` where there is no limit
_INPUTS = ("X", "step", "B", "C", "rate", "bias", "skip", "past_state")


@dataclass(frozen=True)
class StateSpaceLayout:
    """What the attributes and the widths of B and X say."""

    heads: int
    groups: int
    state_size: int  # rows of a head's state: columns of B and C of a group
    head_dim: int  # columns of a head's state
    least: float  # of what a step becomes
    most: float

    @staticmethod
    def of(attributes: Mapping[str, Any], state_width: int, value_width: int) -> StateSpaceLayout:
        """Raises KeyError, TypeError or ValueError when the attributes do not fit."""
        heads, groups = attributes["heads"], attributes["groups"]
        least, most = float(attributes["least"]), float(attributes["most"])
        if type(heads) is not int or type(groups) is not int or min(heads, groups) < 1 or heads % groups:
            raise ValueError(f"{heads!r} heads do not share {groups!r} groups")
        if min(state_width // groups, value_width // heads) < 1 or state_width % groups or value_width % heads:
            raise ValueError(f"widths of {state_width} and {value_width} do not split into groups and heads")
        if not least <= most or abs(least) > LARGEST or abs(most) > LARGEST:
            raise ValueError(f"steps are from {least} to {most}")
        return StateSpaceLayout(heads, groups, state_width // groups, value_width // heads, least, most)

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of the state of one sequence."""
        return self.heads, self.state_size, self.head_dim


def selective_state_space(
    x: np.ndarray, step: np.ndarray, b: np.ndarray, c: np.ndarray, rate: np.ndarray, bias: np.ndarray,
    skip: np.ndarray, past: np.ndarray, layout: StateSpaceLayout,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Reference of SelectiveStateSpace: (Y, present_state). Raises ValueError where the shapes do not fit."""
    batch, tokens, _ = x.shape
    heads, shared = layout.heads, layout.heads // layout.groups
    fits = step.shape == (batch, tokens, heads) and all(numbers.shape == (heads,) for numbers in (rate, bias, skip))
    if not fits or past.shape != (batch, *layout.state) or x.shape[2] != heads * layout.head_dim:
        raise ValueError("the state or the numbers of the heads do not fit")
    split = (batch, tokens, layout.groups, layout.state_size)
    written, read = (np.repeat(rows.reshape(split), shared, axis=2) for rows in (b, c))
    own = x.reshape(batch, tokens, heads, layout.head_dim)
    length = np.clip(np.logaddexp(np.float32(0), step + bias).astype(np.float32), layout.least, layout.most)
    gate, value = np.exp(rate * length), own * length[..., None]
    out, state = np.empty(own.shape, np.float32), past.astype(np.float32)
    for t in range(tokens):
        state = state * gate[:, t, :, None, None] + written[:, t, :, :, None] * value[:, t, :, None]
        out[:, t] = (read[:, t, :, None] @ state)[:, :, 0]
    return (out + skip[:, None] * own).reshape(x.shape), state


def _write(
    b: Body, x: Value, step: Value, written: Value, read: Value, rate: Value, bias: Value, skip: Value, past: Value
) -> tuple[Value, ...]:
    heads, groups = b.attribute("heads"), b.attribute("groups")

    def of_heads(rows: Value) -> Value:
        """Of B or C, float32 [T, batch, heads, 1, n]: heads of a group have the same."""
        split = b.Reshape(rows, one_dimension(b, [0], [0], groups, [1], [-1]))
        repeated = b.Expand(split, one_dimension(b, [1], [1], [1], heads // groups, [1]))
        return b.Transpose(b.Reshape(repeated, one_dimension(b, [0], [0], heads, [1], [-1])), perm=[1, 0, 2, 3, 4])

    def by_token(rows: Value) -> Value:
        """float32 [T, batch, heads, 1, columns of a head]."""
        return b.Transpose(b.Reshape(rows, one_dimension(b, [0], [0], heads, [1], [-1])), perm=[1, 0, 2, 3, 4])

    length = b.Clip(b.Softplus(step + bias), b.float_attribute("least"), b.float_attribute("most"))
    own = by_token(x)
    columns = b.Transpose(of_heads(written), perm=[0, 1, 2, 4, 3])
    rows = [by_token(b.Exp(length * rate)), columns, own * by_token(length), of_heads(read)]
    state, out = b.scan([past], rows, _token)
    whole = out + own * b.Reshape(skip, [-1, 1, 1])
    return b.Reshape(b.Transpose(whole, perm=[1, 0, 2, 3, 4]), b.Shape(x), name="joined"), state


def _token(b: Body, state: Value, gate: Value, column: Value, value: Value, read: Value) -> tuple[Value, Value]:
    after = state * gate + column * value
    return after, b.MatMul(read, after)


@cache
def state_space_function() -> onnx.FunctionProto:
    """FunctionProto of SelectiveStateSpace."""
    attributes, outputs = ("heads", "groups", "least", "most"), ("Y", "present_state")
    return function_proto(DOMAIN, OPSET, SELECTIVE_STATE_SPACE, _INPUTS, attributes, _write, outputs)
