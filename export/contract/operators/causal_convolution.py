"""CausalConvolution: each channel alone over its last few rows, those of earlier calls among them.

CausalConvolution(X, weight, past_state) -> Y, present_state
    X                          float32 [batch, T, channels]
    weight                     float32 [channels, 1, width]
    past_state, present_state  float32 [batch, channels, width - 1]: the last rows before this call, and behind it
    Y[t, c] = sum over j < width of weight[c, 0, j] * X[t - width + 1 + j, c]

CausalConvWithState of opset 27 without bias and activation, of rows in place of columns; its state is the same.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.formats.base import DOMAIN, OPSET

if TYPE_CHECKING:
    import onnx

CAUSAL_CONVOLUTION = "CausalConvolution"
LEAST_WIDTH = 2  # a state has at least one column


def causal_convolution(x: np.ndarray, weight: np.ndarray, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reference of CausalConvolution: (Y, present_state). Raises ValueError where the shapes do not fit."""
    if x.ndim != 3 or weight.ndim != 3 or weight.shape[:2] != (x.shape[2], 1) or weight.shape[2] < LEAST_WIDTH:
        raise ValueError("the weights do not fit the channels")
    width, tokens = weight.shape[2], x.shape[1]
    if past.shape != (x.shape[0], x.shape[2], width - 1):
        raise ValueError("the state does not fit the channels")
    seen = np.concatenate([past.transpose(0, 2, 1), x], axis=1)
    out = np.zeros(x.shape, np.float32)
    for place in range(width):
        out += seen[:, place : place + tokens] * weight[:, 0, place]
    return out, np.ascontiguousarray(seen[:, tokens:].transpose(0, 2, 1))


def _write(b: Body, x: Value, weight: Value, past: Value) -> tuple[Value, ...]:
    seen = b.Concat(past, b.Transpose(x, perm=[0, 2, 1]), axis=2, name="seen")
    kept = b.Slice(seen, -b.Shape(past, start=2, end=3), [2**31 - 1], [2])
    out = b.Conv(seen, weight, group=b.reference("channels"))
    return b.Transpose(out, perm=[0, 2, 1]), kept


@cache
def causal_convolution_function() -> onnx.FunctionProto:
    """FunctionProto of CausalConvolution; attribute `channels`, for the body's Conv."""
    inputs, outputs = ("X", "weight", "past_state"), ("Y", "present_state")
    return function_proto(DOMAIN, OPSET, CAUSAL_CONVOLUTION, inputs, ("channels",), _write, outputs)
