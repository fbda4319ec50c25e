"""The function bodies of CodebookMatMul and CodebookGather.

With a body in the file, onnxruntime, onnxruntime-genai, optimum and onnx.reference run the operator without a plugin.
A registered native kernel takes precedence over the body.
"""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import all_rows, codebook_levels, column_groups, product, row_scales
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN, OPSET

_INPUTS = ("codes", "codebook", "scale")
_ATTRIBUTES = ("bits", "K", "N", "group_size", "rows_per_codebook", "rows_per_scale")


def _weights(b: Body, row_codes: Value, row: Value, codebook: Value, scale: Value) -> Value:
    """float32 [R, K], the rows of W that lie in row_codes."""
    columns = b.attribute("K")
    groups = column_groups(b, columns, b.attribute("group_size"))
    level = codebook_levels(b, row_codes, row, codebook, columns, groups).astype("float32")
    by_column = b.Gather(row_scales(b, scale, row), groups.of_column, axis=1)
    return b.named("weight", level * by_column.astype("float32"))


def _matmul(b: Body, x: Value, codes: Value, codebook: Value, scale: Value) -> Value:
    return product(b, x, _weights(b, codes, all_rows(b), codebook, scale))


def _gather(b: Body, ids: Value, codes: Value, codebook: Value, scale: Value) -> Value:
    row = b.Reshape(ids, [-1], name="row")
    weight = _weights(b, b.Gather(codes, row, name="row_codes"), row, codebook, scale)
    shape = b.Concat(b.Shape(ids), b.Reshape(b.attribute("K"), [1]), axis=0)
    return b.Reshape(weight, shape)


@cache
def function_body() -> onnx.FunctionProto:
    """FunctionProto of CodebookMatMul."""
    return function_proto(DOMAIN, OPSET, CODEBOOK_MATMUL, ("X", *_INPUTS), _ATTRIBUTES, _matmul)


@cache
def gather_function() -> onnx.FunctionProto:
    """FunctionProto of CodebookGather."""
    return function_proto(DOMAIN, OPSET, CODEBOOK_GATHER, ("ids", *_INPUTS), _ATTRIBUTES, _gather)


def function_bodies() -> tuple[onnx.FunctionProto, ...]:
    """FunctionProtos of the two operators that every model may have."""
    return function_body(), gather_function()
