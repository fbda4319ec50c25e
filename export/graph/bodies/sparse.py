"""The function body of SparseMatMul, in ONNX's textual syntax: standard operators of opset 23 only."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from export.contract.formats.codebook import DOMAIN, OPSET
from export.contract.sparse import SPARSE_MATMUL

_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{SPARSE_MATMUL} <K, N> (X, gaps, values) => (Y)
{{
    columns = Constant <value_int: int = @K> ()
    rows = Constant <value_int: int = @N> ()
    one_1d = Constant <value_ints: ints = [1]> ()
    zero = Constant <value_int: int = 0> ()
    size = Mul (columns, rows)
    size_1d = Reshape (size, one_1d)
    empty = ConstantOfShape <value: tensor = float[1] {{0}}> (size_1d)
    steps = Cast <to = 7> (gaps)
    places = CumSum (steps, zero)
    numbers = Cast <to = 1> (values)
    filled = ScatterElements <axis = 0> (empty, places, numbers)
    rows_1d = Reshape (rows, one_1d)
    columns_1d = Reshape (columns, one_1d)
    shape = Concat <axis = 0> (rows_1d, columns_1d)
    weight = Reshape (filled, shape)
    transposed = Transpose <perm = [1, 0]> (weight)
    Y = MatMul (X, transposed)
}}
"""


@cache
def sparse_function() -> onnx.FunctionProto:
    """FunctionProto of SparseMatMul."""
    return onnx.parser.parse_function(_TEXT)
