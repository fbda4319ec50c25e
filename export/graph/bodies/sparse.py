"""The function body of SparseMatMul."""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import one_dimension, product
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.sparse import SPARSE_MATMUL


def _matmul(b: Body, x: Value, gaps: Value, values: Value) -> Value:
    columns, rows = b.attribute("K"), b.attribute("N")
    empty = b.ConstantOfShape(b.Reshape(columns * rows, [1]))
    places = b.CumSum(gaps.astype("int64"), 0, name="places")
    filled = b.ScatterElements(empty, places, values.astype("float32"), axis=0)
    return product(b, x, b.Reshape(filled, one_dimension(b, rows, columns), name="weight"))


@cache
def function_body() -> onnx.FunctionProto:
    """FunctionProto of SparseMatMul."""
    return function_proto(DOMAIN, OPSET, SPARSE_MATMUL, ("X", "gaps", "values"), ("K", "N"), _matmul)


sparse_function = function_body
