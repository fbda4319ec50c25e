"""From the states of all tokens to one vector of the text, as the folder's sentence-transformers files say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.sentence_modules import Dense, Pooling
from export.graph.visibility import places
from export.graph.writer import Dim, GraphWriter

BOOL, LONG = ir.DataType.BOOL, ir.DataType.INT64


def pool(layers: Layers, pooling: Pooling, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    """float32 [batch, width] from hidden [batch, sequence, width] and the mask int64 [batch, sequence].

    Behind dense layers the width is that of the last one. Raises InputError where they do not fit.
    """
    g, at = layers.g, "/pooling"
    out = pooled(g, pooling.mode, hidden, attention_mask, width)
    for number, dense in enumerate(pooling.dense):
        out, width = _through(layers, dense, out, width, f"{at}/dense_{number}"), dense.rows
    if not pooling.normalize:
        return out
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    length = g.op("ReduceL2", f"{at}/length", [out, last], [BATCH, 1], keepdims=1)
    least = g.constant("pooling.least_length", np.asarray(1e-12, np.float32))
    divisor = g.op("Max", f"{at}/divisor", [length, least], [BATCH, 1])
    return g.op("Div", f"{at}/normalized", [out, divisor], [BATCH, width])


def pooled(g: GraphWriter, mode: str, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    """float32 [batch, width] in one of the modes of Pooling."""
    if mode == "cls":
        first = g.constant("zero", np.asarray(0, np.int64))
        out: ir.Value = g.op("Gather", "/pooling/first", [hidden, first], [BATCH, width], axis=1)
        return out
    if mode == "lasttoken":
        return _last(g, hidden, attention_mask, width)
    return (_maximum if mode == "max" else _mean)(g, mode, hidden, attention_mask, width)


def _through(layers: Layers, dense: Dense, value: ir.Value, width: int, name: str) -> ir.Value:
    """activation(W value + b), W and b float32 as they are stored."""
    g = layers.g
    shape: list[Dim] = [BATCH, dense.rows]
    if dense.columns != width:
        raise InputError(f"{dense.folder / 'config.json'}: in_features must be {width}, not {dense.columns}")
    stored = dense.weights()
    size = [dense.columns, dense.rows]
    weight = g.lazy(f"{name[1:]}.weight", np.float32, size, lambda: stored["linear.weight"].T)
    out = g.op("MatMul", name, [value, weight], shape)
    if dense.bias:
        bias = g.lazy(f"{name[1:]}.bias", np.float32, [dense.rows], lambda: stored["linear.bias"])
        out = g.op("Add", f"{name}/add_bias", [out, bias], shape)
    return layers.activate(dense.activation, out, f"{name}/activation", shape)


def _mean(g: GraphWriter, mode: str, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    """The sum by the number of tokens, or by its root (the length of as many ones)."""
    at, real = "/pooling/mean", ir.DataType.FLOAT
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    second = g.constant("axis.second", np.asarray([1], np.int64))
    mask = g.op("Cast", f"{at}/mask", [attention_mask], [BATCH, SEQUENCE], to=real)
    column = g.op("Unsqueeze", f"{at}/column", [mask, last], [BATCH, SEQUENCE, 1])
    kept = g.op("Mul", f"{at}/kept", [hidden, column], [BATCH, SEQUENCE, width])
    total = g.op("ReduceSum", f"{at}/total", [kept, second], [BATCH, width], keepdims=0)
    counting = "ReduceSum" if mode == "mean" else "ReduceL2"
    count = g.op(counting, f"{at}/count", [column, second], [BATCH, 1], keepdims=0)
    least = g.constant("pooling.least_count", np.asarray(1e-9, np.float32))
    return g.op("Div", at, [total, g.op("Max", f"{at}/divisor", [count, least], [BATCH, 1])], [BATCH, width])


def _maximum(g: GraphWriter, mode: str, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    at = "/pooling/max"
    second = g.constant("axis.second", np.asarray([1], np.int64))
    column = _column(g, g.op("Cast", f"{at}/keep", [attention_mask], [BATCH, SEQUENCE], BOOL, to=BOOL), at)
    lowest = g.constant("pooling.lowest", np.asarray(-1e9, np.float32))  # what sentence-transformers puts there
    kept = g.op("Where", f"{at}/kept", [column, hidden, lowest], [BATCH, SEQUENCE, width])
    return g.op("ReduceMax", at, [kept, second], [BATCH, width], keepdims=0)


def _last(g: GraphWriter, hidden: ir.Value, attention_mask: ir.Value, width: int) -> ir.Value:
    """The state of the last token that is not padding, wherever the padding stands."""
    at, grid = "/pooling/last", [BATCH, SEQUENCE]
    second = g.constant("axis.second", np.asarray([1], np.int64))
    numbers = places(g, attention_mask)
    counted: list[Dim] = [BATCH, 1]
    kept = g.op("Mul", f"{at}/places", [attention_mask, numbers], grid, LONG)
    greatest = g.op("ReduceMax", f"{at}/place", [kept, second], counted, LONG, keepdims=1)
    not_before = g.op("LessOrEqual", f"{at}/not_before", [greatest, numbers], grid, BOOL)
    real = g.op("Cast", f"{at}/keep", [attention_mask], grid, BOOL, to=BOOL)
    column = _column(g, g.op("And", f"{at}/chosen", [not_before, real], grid, BOOL), at)
    nothing = g.constant("pooling.nothing", np.asarray(0, np.float32))
    state = g.op("Where", f"{at}/kept", [column, hidden, nothing], [BATCH, SEQUENCE, width])
    return g.op("ReduceSum", at, [state, second], [BATCH, width], keepdims=0)


def _column(g: GraphWriter, keep: ir.Value, at: str) -> ir.Value:
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    out: ir.Value = g.op("Unsqueeze", f"{at}/column", [keep, last], [BATCH, SEQUENCE, 1], BOOL)
    return out
