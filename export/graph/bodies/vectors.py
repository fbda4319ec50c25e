"""The function body of VectorCodebookMatMul."""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import all_rows, entries, one_dimension, product, row_scales, unpacked
from export.contract.formats.codebook import DOMAIN, OPSET
from export.contract.formats.vectors import VECTOR_MATMUL

_ATTRIBUTES = ("bits", "K", "N", "dimension", "books", "rows_per_codebook", "rows_per_scale")


def _levels(b: Body, codes: Value, codebook: Value) -> Value:
    """From codes uint8 [N, books, bytes of a row] to the sums of their vectors, float32 [N, K]."""
    columns, rows, dimension, books = map(b.attribute, ("K", "N", "dimension", "books"))
    code_rows = rows * books
    row_codes = b.Reshape(codes, one_dimension(b, code_rows, [-1]))
    code = unpacked(b, row_codes, (columns + dimension - 1) // dimension)

    code_row = b.Range(0, code_rows, 1)
    row = code_row // books
    book = row // b.attribute("rows_per_codebook") * books + (code_row - row * books)
    size = entries(b, b.attribute("bits")).astype("int64")
    first = b.Unsqueeze(book * size, [1]).astype("int32")
    vectors = b.Gather(b.Reshape(codebook, one_dimension(b, [-1], dimension)), first + code.astype("int32"))
    by_book = b.Reshape(vectors, one_dimension(b, rows, books, [-1]))
    sums = b.ReduceSum(by_book.astype("float32"), [1], keepdims=0)
    return b.Slice(sums, [0], b.Reshape(columns, [1]), [1], name="level")


def _matmul(b: Body, x: Value, codes: Value, codebook: Value, scale: Value) -> Value:
    scales = row_scales(b, scale, all_rows(b)).astype("float32")
    return product(b, x, b.named("weight", _levels(b, codes, codebook) * scales))


@cache
def function_body() -> onnx.FunctionProto:
    """FunctionProto of VectorCodebookMatMul."""
    inputs = ("X", "codes", "codebook", "scale")
    return function_proto(DOMAIN, OPSET, VECTOR_MATMUL, inputs, _ATTRIBUTES, _matmul)


vector_function = function_body
