"""The function bodies of SdrQuantize and SdrMatMul, and of every integer operator.

Every sum of products is an integer matrix product over one group of codes, followed by one multiplication with a power
of two: `mac(codes) << (flag + flag)`. Nothing between quantization and the final scale is floating point.
"""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import all_rows, codebook_levels, column_groups, one_dimension, row_scales
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.operators.integers import SDR_MATMUL, SDR_QUANTIZE
from export.graph.bodies.attention import attention_function
from export.graph.bodies.razor import FORMAT, basis_limit, in_groups, integers, own_unit, power_of_two, razored
from export.graph.bodies.tender import tender_function


def _quantize(b: Body, x: Value, unit: Value) -> tuple[Value, ...]:
    limit = basis_limit(b)
    per_token = b.attribute("per_token").astype("bool")
    units = b.named("units", b.Where(per_token, own_unit(b, x, limit), unit))
    whole = integers(b, x, units, -limit, limit)
    columns, group = b.Shape(x, start=-1), b.attribute("group_size")
    groups, missing = in_groups(columns, group)
    rows = b.Reshape(whole, b.Concat([-1], columns, axis=0))
    padded = b.Pad(rows, b.Concat([0], [0], [0], missing, axis=0))
    group_1d = b.Reshape(group, [1])
    codes, flags = razored(b, b.Reshape(padded, b.Concat([-1], groups, group_1d, axis=0)))
    outer = b.Shape(x, start=0, end=-1)
    return (
        b.Reshape(codes.astype(b.reference("code_type")), b.Concat(outer, groups, group_1d, axis=0)),
        b.Reshape(flags.astype("uint8"), b.Concat(outer, groups, axis=0)),
        units,
    )


def _matmul(
    b: Body, codes: Value, flags: Value, units: Value,
    weight_codes: Value, codebook: Value, weight_flags: Value, scale: Value,
) -> Value:  # fmt: skip
    columns, rows, group, row = b.attribute("K"), b.attribute("N"), b.attribute("group_size"), all_rows(b)
    whole_rows = column_groups(b, columns, b.constant(0))
    level = codebook_levels(b, weight_codes, row, codebook, columns, whole_rows)
    count, missing = in_groups(columns, group)
    groups, group_1d = b.Reshape(count, [1]), b.Reshape(group, [1])

    padded = b.Pad(level.astype("int32"), b.Concat([0], [0], [0], b.Reshape(missing, [1]), axis=0))
    weight = b.Transpose(b.Reshape(padded, one_dimension(b, rows, count, group)), perm=[1, 2, 0])
    activation = b.Transpose(b.Reshape(codes, b.Concat([-1], groups, group_1d, axis=0)), perm=[1, 0, 2])
    mac = b.MatMul(activation.astype("int32"), weight).astype("int64")
    token_flags = b.Transpose(b.Reshape(flags, b.Concat([-1], groups, axis=0)), perm=[1, 0])
    power = power_of_two(b, b.Unsqueeze(_flags_by_group(b, weight_flags, groups), [1]))
    sums = b.ReduceSum(mac * power * power_of_two(b, b.Unsqueeze(token_flags, [2])), [0], keepdims=0, name="sums")

    by_token = sums.astype("float32") * b.Reshape(units, [-1, 1])
    scaled = by_token * row_scales(b, b.Reshape(scale, [-1]), row).astype("float32")
    return b.Reshape(scaled, b.Concat(b.Shape(units, start=0, end=-1), b.Reshape(rows, [1]), axis=0))


def _flags_by_group(b: Body, flags: Value, groups: Value) -> Value:
    """From uint8 [R, bytes], two flags of four bits in each, to uint8 [groups, R]."""
    early = b.Unsqueeze(flags & b.constant(15, "uint8"), [2])
    late = b.Unsqueeze(flags >> b.constant(4, "uint8"), [2])
    both = b.Reshape(b.Concat(early, late, axis=2), [0, -1])
    return b.Transpose(b.Slice(both, [0], groups, [1]), perm=[1, 0])


@cache
def quantize_function() -> onnx.FunctionProto:
    """FunctionProto of SdrQuantize."""
    outputs = ("codes", "flags", "units")
    attributes = (*FORMAT, "per_token", "code_type")
    return function_proto(DOMAIN, OPSET, SDR_QUANTIZE, ("X", "unit"), attributes, _quantize, outputs)


@cache
def matmul_function() -> onnx.FunctionProto:
    """FunctionProto of SdrMatMul."""
    inputs = ("codes", "flags", "units", "weight_codes", "codebook", "weight_flags", "scale")
    attributes = ("bits", "K", "N", "group_size", "rows_per_codebook", "rows_per_scale")
    return function_proto(DOMAIN, OPSET, SDR_MATMUL, inputs, attributes, _matmul)


def integer_function_bodies() -> tuple[onnx.FunctionProto, ...]:
    """FunctionProtos of the integer operators."""
    return quantize_function(), matmul_function(), attention_function(), tender_function()
