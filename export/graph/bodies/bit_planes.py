"""The function body of BitPlaneMatMul (export/contract/operators/bit_planes.py)."""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.operators.bit_planes import BIT_PLANE_MATMUL
from export.graph.bodies.razor import power_of_two


def _bits(b: Body, planes: Value, columns: Value) -> Value:
    """From uint8 [p, N, bytes] to float32 [p, N, K], the bits of each plane."""
    shifts = b.constant(list(range(8)), "uint8")
    apart = (b.Unsqueeze(planes, [3]) >> shifts) & b.constant(1, "uint8")
    flat = b.Reshape(apart, [0, 0, -1])
    return b.Slice(flat, [0], b.Reshape(columns, [1]), [2]).astype("float32")


def _planes_of(b: Body, codes: Value, q: Value) -> Value:
    """From float32 [T, K], whole numbers, to float32 [q, T, K]."""
    shifts = b.Reshape(b.Range(0, q, 1), [-1, 1, 1]).astype("uint8")
    return ((b.Unsqueeze(codes.astype("uint8"), [0]) >> shifts) & b.constant(1, "uint8")).astype("float32")


def _sums(b: Body, weights: Value, activations: Value, columns: Value, bipolar: Value) -> Value:
    """int64 [T, N]: planes float32 [p, N, K] and [q, T, K], one product of bits for every pair of them."""
    turned = b.Transpose(b.Unsqueeze(weights, [1]), perm=[0, 1, 3, 2])  # [p, 1, K, N]
    both = b.MatMul(b.Unsqueeze(activations, [0]), turned).astype("int64")  # [p, q, T, N], common ones
    w_ones = b.Unsqueeze(b.ReduceSum(weights, [2], keepdims=0), [1, 2]).astype("int64")
    a_ones = b.Unsqueeze(b.ReduceSum(activations, [2], keepdims=0), [0, 3]).astype("int64")
    differ = w_ones + a_ones - both * 2  # ones of the exclusive or
    counts = b.Where(bipolar, columns - differ * 2, both)
    places = [b.Range(0, b.attribute(name), 1) for name in ("p", "q")]
    powers = power_of_two(b, b.Reshape(places[0], [-1, 1, 1, 1]) + b.Reshape(places[1], [-1, 1, 1]))
    return b.ReduceSum(counts * powers, [0, 1], keepdims=0, name="sums")


def _matmul(b: Body, x: Value, planes: Value, zero: Value, scale: Value) -> Value:
    columns, bipolar = b.attribute("K"), b.attribute("bipolar").astype("bool")
    rows = b.Reshape(x, b.Concat([-1], b.Reshape(columns, [1]), axis=0))
    top = (power_of_two(b, b.attribute("q")) - 1).astype("float32")
    low, high = b.Min(b.ReduceMin(rows, [1]), 0.0), b.Max(b.ReduceMax(rows, [1]), 0.0)
    size = b.Where(bipolar, b.ReduceMax(b.Abs(rows), [1]), high - low)
    unit = b.Where(b.Greater(size, 0.0), size / top, 1.0)
    token_zero = b.Where(bipolar, 0.0, b.Round(-low / unit))
    plain = b.Round(rows / unit) + token_zero
    odd = b.Round((rows / unit + top) / 2.0)
    codes = b.Clip(b.Where(bipolar, odd, plain), 0.0, top)
    weights = _bits(b, planes, columns)
    sums = _sums(b, weights, _planes_of(b, codes, b.attribute("q")), columns, bipolar)

    places = power_of_two(b, b.Reshape(b.Range(0, b.attribute("p"), 1), [-1, 1]))
    by_row = b.ReduceSum(b.ReduceSum(weights, [2], keepdims=0).astype("int64") * places, [0], keepdims=0)
    by_token = b.ReduceSum(codes, [1]).astype("int64")
    own, theirs = zero.astype("int64"), token_zero.astype("int64")
    corrected = sums - theirs * by_row - by_token * own + columns * theirs * own
    exact = b.Where(bipolar, sums, corrected)
    out = exact.astype("float32") * unit * scale
    return b.Reshape(out, b.Concat(b.Shape(x, start=0, end=-1), b.Reshape(b.attribute("N"), [1]), axis=0))


@cache
def bit_plane_function() -> onnx.FunctionProto:
    """FunctionProto of BitPlaneMatMul."""
    inputs, attributes = ("X", "planes", "zero", "scale"), ("K", "N", "p", "q", "bipolar")
    return function_proto(DOMAIN, OPSET, BIT_PLANE_MATMUL, inputs, attributes, _matmul)
