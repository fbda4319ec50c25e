"""Standard ONNX operators (opset 23) that our graphs use, on numpy arrays. Stateless; attention lives in session.py.

Each function takes (attributes, inputs) and returns a tuple of outputs. An operator that is not in OPERATORS is refused
when the folder is loaded, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from export.artefacts.onnx_file.types import dtype_of
from export.contract.errors import InputError
from runtime_py.reference.kernels import rotate

Arrays = Sequence[np.ndarray]
Operator = Callable[[Mapping[str, Any], Arrays], tuple[np.ndarray, ...]]


def _cast(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    return (x[0].astype(dtype_of(attributes["to"])),)


def _unsqueeze(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    return (np.expand_dims(x[0], tuple(int(a) for a in np.atleast_1d(x[1]))),)


def _squeeze(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    return (np.squeeze(x[0], tuple(int(a) for a in np.atleast_1d(x[1]))),)


def _shape(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    dims = x[0].shape[attributes.get("start", 0) : attributes.get("end", x[0].ndim)]
    return (np.asarray(dims, np.int64),)


def _reshape(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    shape = [x[0].shape[i] if size == 0 else int(size) for i, size in enumerate(x[1])]  # zero copies a dimension
    return (x[0].reshape(shape),)


def _slice(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    """Along some axes, from the first number to before the second; every element, in order."""
    if len(x) > 4 and (np.asarray(x[4]) != 1).any():
        raise ValueError("only whole pieces are cut out here")
    axes = x[3] if len(x) > 3 else np.arange(len(x[1]))
    parts = [slice(None)] * x[0].ndim
    for axis, start, end in zip(axes, x[1], x[2], strict=True):
        parts[int(axis)] = slice(int(start), int(end))
    return (x[0][tuple(parts)],)


def _conv(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    """Each channel [batch, channels, length] with weights [channels, 1, width] of its own, nowhere beyond the ends."""
    value, weights, channels = x[0], x[1], x[0].shape[1]
    steps = [*attributes.get("strides", ()), *attributes.get("dilations", ())]
    plain = not any(attributes.get("pads", ())) and all(step == 1 for step in steps)
    if not plain or attributes.get("auto_pad", "NOTSET") != "NOTSET" or attributes.get("group", 1) != channels:
        raise ValueError("only convolutions of each channel without padding and strides are done here")
    if value.ndim != 3 or weights.shape[:2] != (channels, 1) or value.shape[2] < weights.shape[2] or len(x) > 3:
        raise ValueError("the weights do not fit the channels")
    length = value.shape[2] - weights.shape[2] + 1
    out = np.zeros((*value.shape[:2], length), value.dtype)
    if len(x) > 2:
        out += x[2].reshape(channels, 1)
    for place in range(weights.shape[2]):
        out += value[:, :, place : place + length] * weights[:, :, place]
    return (out,)


def _split(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    return tuple(np.split(x[0], np.cumsum(x[1])[:-1], axis=attributes.get("axis", 0)))


def _rms_normalization(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    value, scale = x
    mean = np.mean(np.square(value), axis=-1, keepdims=True)
    return (value / np.sqrt(mean + np.float32(attributes.get("epsilon", 1e-5))) * scale,)


def _layer_normalization(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    value, scale = x[0], x[1]
    centred = value - np.mean(value, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    out = centred / np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-5))) * scale
    return (out + x[2] if len(x) > 2 else out,)


def _rotary_embedding(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    value, cos, sin = x
    batch, tokens, width = value.shape
    heads = attributes["num_heads"]
    parts = np.ascontiguousarray(value).reshape(tokens, heads, width // heads)
    out = rotate(parts, cos[0], sin[0], bool(attributes.get("interleaved", 0)))
    return (out.reshape(batch, tokens, width),)


def _log(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    with np.errstate(divide="ignore", invalid="ignore"):  # minus infinity and no number, as everywhere
        return (np.log(x[0]),)


def _sigmoid(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    with np.errstate(over="ignore"):  # exp overflows to infinity for very negative inputs, giving exactly zero
        return (np.float32(1.0) / (np.float32(1.0) + np.exp(-x[0])),)


def _softmax(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    axis = attributes.get("axis", -1)
    powers = np.exp(x[0] - np.max(x[0], axis=axis, keepdims=True))
    return (powers / np.sum(powers, axis=axis, keepdims=True),)


def _top_k(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    """The largest along the last axis, largest first; of equal ones that with the lower index."""
    if attributes.get("axis", -1) not in (-1, x[0].ndim - 1) or not attributes.get("largest", 1):
        raise ValueError("only the largest along the last axis are found here")
    count = int(np.reshape(x[1], ()))
    if not 0 <= count <= x[0].shape[-1]:
        raise ValueError(f"{count} of {x[0].shape[-1]} values are asked for")
    order = np.argsort(-x[0], axis=-1, kind="stable")[..., :count]
    return np.take_along_axis(x[0], order, axis=-1), order.astype(np.int64)


def _axes(x: Arrays) -> tuple[int, ...]:
    return tuple(int(a) for a in np.atleast_1d(x[1]))


def _keeps(attributes: Mapping[str, Any]) -> bool:
    return bool(attributes.get("keepdims", 1))


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(attributes: Mapping[str, Any], x: Arrays) -> tuple[np.ndarray, ...]:
    value = x[0]
    if attributes.get("approximate", "none") == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (value + np.float32(0.044715) * value * value * value)
        return (np.float32(0.5) * value * (np.float32(1.0) + np.tanh(inner)),)
    return (np.float32(0.5) * value * (np.float32(1.0) + _erf(value * np.float32(math.sqrt(0.5)))),)


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda a, x: (x[0] + x[1],),
    "And": lambda a, x: (x[0] & x[1],),
    "Cast": _cast,
    "Clip": lambda a, x: (np.clip(x[0], x[1], x[2]),),
    "Conv": _conv,
    "Concat": lambda a, x: (np.concatenate(x, axis=a["axis"]),),
    "Cos": lambda a, x: (np.cos(x[0]),),
    "CumSum": lambda a, x: (np.cumsum(x[0], axis=int(x[1])),),
    "Div": lambda a, x: (x[0] / x[1],),
    "Expand": lambda a, x: (x[0] * np.ones([int(n) for n in x[1]], x[0].dtype),),
    "Floor": lambda a, x: (np.floor(x[0]),),
    "Gather": lambda a, x: (np.take(x[0], x[1], axis=a.get("axis", 0)),),
    "GatherElements": lambda a, x: (np.take_along_axis(x[0], x[1], axis=a.get("axis", 0)),),
    "Gelu": _gelu,
    "LayerNormalization": _layer_normalization,
    "Less": lambda a, x: (x[0] < x[1],),
    "LessOrEqual": lambda a, x: (x[0] <= x[1],),
    "Log": _log,
    "MatMul": lambda a, x: (np.matmul(x[0], x[1]),),
    "Max": lambda a, x: (np.maximum(x[0], x[1]),),
    "Min": lambda a, x: (np.minimum(x[0], x[1]),),
    "Mul": lambda a, x: (x[0] * x[1],),
    "RMSNormalization": _rms_normalization,
    "Range": lambda a, x: (np.arange(int(x[0]), int(x[1]), int(x[2]), dtype=np.int64),),
    "ReduceL2": lambda a, x: (np.sqrt(np.sum(np.square(x[0]), axis=_axes(x), keepdims=_keeps(a))),),
    "ReduceMax": lambda a, x: (np.max(x[0], axis=_axes(x), keepdims=_keeps(a)),),
    "ReduceSum": lambda a, x: (np.sum(x[0], axis=_axes(x), keepdims=_keeps(a)),),
    "Relu": lambda a, x: (np.maximum(x[0], 0),),
    "RotaryEmbedding": _rotary_embedding,
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Sin": lambda a, x: (np.sin(x[0]),),
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, x: (x[0] - x[1],),
    "Tanh": lambda a, x: (np.tanh(x[0]),),
    "Transpose": lambda a, x: (np.ascontiguousarray(np.transpose(x[0], a["perm"])),),
    "TopK": _top_k,
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, x: (np.where(x[0], x[1], x[2]),),
}

_MAX_ELEMENTS = 1 << 30  # of one result
_ELEMENTWISE = frozenset({"Add", "And", "Div", "Less", "LessOrEqual", "Max", "Min", "Mul", "Sub"})


def run_operator(op_type: str, name: str, attributes: Mapping[str, Any], inputs: Arrays) -> tuple[np.ndarray, ...]:
    """Run one operator of a graph that may be hostile. `name`: the node's, for error messages.

    Raises InputError when the operator does not fit its inputs or its result would be too large.
    """
    try:
        elements = _result_elements(op_type, attributes, inputs)
        if elements > _MAX_ELEMENTS:
            raise InputError(
                f"node {name}: {op_type} would make {elements} numbers; at most {_MAX_ELEMENTS} are allowed"
            )
        return OPERATORS[op_type](attributes, inputs)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"node {name}: {op_type} does not fit its inputs ({type(error).__name__}: {error})") from None


def _result_elements(op_type: str, attributes: Mapping[str, Any], x: Arrays) -> int:
    """How many numbers the result has, for the operators that make more than they get."""
    if op_type in _ELEMENTWISE:
        return math.prod(np.broadcast_shapes(x[0].shape, x[1].shape))
    if op_type in ("Clip", "Where"):
        return math.prod(np.broadcast_shapes(*(value.shape for value in x)))
    if op_type == "Expand":
        return math.prod(np.broadcast_shapes(x[0].shape, tuple(int(n) for n in x[1])))
    if op_type == "MatMul":
        batch = np.broadcast_shapes(x[0].shape[:-2], x[1].shape[:-2])
        return math.prod((*batch, *x[0].shape[-2:-1], *x[1].shape[-1:]))
    if op_type == "Conv":
        return x[0].size * x[1].shape[2]  # what is added up
    if op_type == "Gather":
        axis = x[0].shape[attributes.get("axis", 0)]
        return x[0].size // max(axis, 1) * x[1].size
    if op_type == "GatherElements":
        return x[1].size
    if op_type == "Range":
        start, stop, step = (int(v) for v in x)
        return len(range(start, stop, step))
    return 0
