"""The function body of VectorCodebookMatMul, in ONNX's textual syntax: standard operators of opset 23 only."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from export.contract.formats.codebook import DOMAIN, OPSET
from export.contract.formats.vectors import VECTOR_MATMUL
from export.graph.bodies.codebook import CONSTANTS, PLACES, planes

_GEOMETRY = f"""
{CONSTANTS}    width_k = Constant <value_int: int = @K> ()
    rows = Constant <value_int: int = @N> ()
    dimension = Constant <value_int: int = @dimension> ()
    books = Constant <value_int: int = @books> ()
    width_up = Add (width_k, dimension)
    width_up_minus = Sub (width_up, one)
    columns = Div (width_up_minus, dimension)
{PLACES}"""

_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{VECTOR_MATMUL} <bits, K, N, dimension, books, rows_per_codebook, rows_per_scale> (X, codes, codebook, scale) => (Y)
{{
{_GEOMETRY}
    code_rows = Mul (rows, books)
    code_rows_1d = Reshape (code_rows, second)
    packed_shape = Concat <axis = 0> (code_rows_1d, flat)
    row_codes = Reshape (codes, packed_shape)
{planes()}
    code_row = Range (zero, code_rows, one)
    row = Div (code_row, books)
    row_first = Mul (row, books)
    which_book = Sub (code_row, row_first)
    chunk = Div (row, rows_per_codebook)
    chunk_first = Mul (chunk, books)
    book = Add (chunk_first, which_book)
    one_u = Cast <to = 12> (one)
    bits_u = Cast <to = 12> (bits)
    entries_u = BitShift <direction = "LEFT"> (one_u, bits_u)
    entries = Cast <to = 7> (entries_u)
    book_at_64 = Mul (book, entries)
    book_column = Unsqueeze (book_at_64, second)
    book_at = Cast <to = 6> (book_column)
    code_32 = Cast <to = 6> (code_1)
    entry_at = Add (book_at, code_32)
    dimension_1d = Reshape (dimension, second)
    all_shape = Concat <axis = 0> (flat, dimension_1d)
    all_entries = Reshape (codebook, all_shape)
    vectors = Gather (all_entries, entry_at)
    rows_1d = Reshape (rows, second)
    books_1d = Reshape (books, second)
    by_book = Concat <axis = 0> (rows_1d, books_1d, flat)
    separate = Reshape (vectors, by_book)
    separate_float = Cast <to = 1> (separate)
    sums = ReduceSum <keepdims = 0> (separate_float, second)
    stop = Reshape (width_k, second)
    level_float = Slice (sums, start, stop, second)
    all_rows = Range (zero, rows, one)
    scale_row = Div (all_rows, rows_per_scale)
    row_scales = Gather (scale, scale_row)
    scale_float = Cast <to = 1> (row_scales)
    weight = Mul (level_float, scale_float)
    transposed = Transpose <perm = [1, 0]> (weight)
    Y = MatMul (X, transposed)
}}
"""


@cache
def vector_function() -> onnx.FunctionProto:
    """FunctionProto of VectorCodebookMatMul."""
    return onnx.parser.parse_function(_TEXT)
