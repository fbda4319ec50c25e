"""The function body of TrellisCodebookMatMul, in ONNX's textual syntax: standard operators of opset 23 only.

States come from codes by doubling: a window of 2 codes from single ones, of 4 from 2, of 8 from 4, each time by looking
up so many rows; masks keep the window to state_bits.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from export.contract.formats.codebook import DOMAIN, OPSET
from export.contract.formats.trellis import TRELLIS_MATMUL
from export.graph.bodies.codebook import CONSTANTS, PLACES, planes


def _window(rows: int) -> str:
    """Nodes from window_<rows> uint32 [chunks, R, K], of `rows` codes, to window_<2 rows>."""
    return f"""
    rows_{rows} = Constant <value_ints: ints = [{rows}]> ()
    first_{rows} = Constant <value_ints: ints = [0, {rows}, 0, 0, 0, 0]> ()
    later_{rows} = Pad (window_{rows}, first_{rows}, nothing)
    above_{rows} = Slice (later_{rows}, start, chunk_rows_1d, second)
    count_{rows} = Constant <value_int: int = {rows}> ()
    distance_{rows} = Mul (bits, count_{rows})
    shift_rows_{rows} = Cast <to = 12> (distance_{rows})
    shifted_rows_{rows} = BitShift <direction = "LEFT"> (above_{rows}, shift_rows_{rows})
    both_{rows} = BitwiseOr (window_{rows}, shifted_rows_{rows})
    window_{2 * rows} = BitwiseAnd (both_{rows}, state_mask)
"""


_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{TRELLIS_MATMUL} <bits, K, N, state_bits, rows_per_codebook, rows_per_scale> (X, codes, codebook, scale) => (Y)
{{
{CONSTANTS}    columns = Constant <value_int: int = @K> ()
    rows = Constant <value_int: int = @N> ()
    state_bits = Constant <value_int: int = @state_bits> ()
{PLACES}    row_codes = Identity (codes)
{planes()}
    nothing = Cast <to = 12> (zero)
    one_u = Cast <to = 12> (one)
    state_bits_u = Cast <to = 12> (state_bits)
    entries_u = BitShift <direction = "LEFT"> (one_u, state_bits_u)
    state_mask = Sub (entries_u, one_u)
    chunk_rows = Min (rows_per_codebook, rows)
    chunk_rows_1d = Reshape (chunk_rows, second)
    rows_up = Add (rows, chunk_rows)
    rows_up_minus = Sub (rows_up, one)
    chunks = Div (rows_up_minus, chunk_rows)
    whole_rows = Mul (chunks, chunk_rows)
    missing = Sub (whole_rows, rows)
    missing_1d = Reshape (missing, second)
    no_padding = Constant <value_ints: ints = [0, 0]> ()
    padding = Concat <axis = 0> (no_padding, missing_1d, start)
    code_32 = Cast <to = 12> (code_1)
    whole_codes = Pad (code_32, padding, nothing)
    columns_1d = Reshape (columns, second)
    by_chunk = Concat <axis = 0> (flat, chunk_rows_1d, columns_1d)
    window_1 = Reshape (whole_codes, by_chunk)
{_window(1)}{_window(2)}{_window(4)}
    by_row = Concat <axis = 0> (flat, columns_1d)
    all_states_u = Reshape (window_8, by_row)
    rows_1d = Reshape (rows, second)
    states_u = Slice (all_states_u, start, rows_1d, start)
    states = Cast <to = 6> (states_u)
    row = Range (zero, rows, one)
    chunk = Div (row, chunk_rows)
    entries = Cast <to = 7> (entries_u)
    book_at_64 = Mul (chunk, entries)
    book_column = Unsqueeze (book_at_64, second)
    book_at = Cast <to = 6> (book_column)
    level_at = Add (book_at, states)
    all_levels = Reshape (codebook, flat)
    level = Gather (all_levels, level_at)
    level_float = Cast <to = 1> (level)
    scale_row = Div (row, rows_per_scale)
    row_scales = Gather (scale, scale_row)
    scale_float = Cast <to = 1> (row_scales)
    weight = Mul (level_float, scale_float)
    transposed = Transpose <perm = [1, 0]> (weight)
    Y = MatMul (X, transposed)
}}
"""


@cache
def trellis_function() -> onnx.FunctionProto:
    """FunctionProto of TrellisCodebookMatMul."""
    return onnx.parser.parse_function(_TEXT)
