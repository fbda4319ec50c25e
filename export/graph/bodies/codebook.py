"""The function bodies of the ai.athena operators, in ONNX's textual syntax: standard operators of opset 23 only.

With a body in the file, onnxruntime, onnxruntime-genai, optimum and onnx.reference run the operator without a plugin.
One body serves every width: planes that a width does not have are switched off
(layout in export/contract/packing.py). A registered native kernel takes precedence over the body.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN, OPSET
from export.contract.packing import BLOCK_COLUMNS, PLANE_WIDTHS

_ATTRIBUTES = "bits, K, N, group_size, rows_per_codebook, rows_per_scale"

CONSTANTS = f"""
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    seven = Constant <value_int: int = 7> ()
    eight = Constant <value_int: int = 8> ()
    block_columns = Constant <value_int: int = {BLOCK_COLUMNS}> ()
    block_bytes_per_bit = Constant <value_int: int = {BLOCK_COLUMNS // 8}> ()
    flat = Constant <value_ints: ints = [-1]> ()
    start = Constant <value_ints: ints = [0]> ()
    second = Constant <value_ints: ints = [1]> ()
    bits = Constant <value_int: int = @bits> ()
    rows_per_codebook = Constant <value_int: int = @rows_per_codebook> ()
    rows_per_scale = Constant <value_int: int = @rows_per_scale> ()
"""

# From columns, the number of codes in a row, to where each code lies.
PLACES = """
    column = Range (zero, columns, one)
    block = Div (column, block_columns)
    block_first = Mul (block, block_columns)
    in_block = Sub (column, block_first)
    columns_left = Sub (columns, block_first)
    width = Min (columns_left, block_columns)
    block_bytes = Mul (bits, block_bytes_per_bit)
    base_8 = Mul (block, block_bytes)
    columns_minus = Sub (columns, one)
"""

GEOMETRY = f"""{CONSTANTS}
    columns = Constant <value_int: int = @K> ()
    group_size = Constant <value_int: int = @group_size> ()
    whole_row = Equal (group_size, zero)
    columns_per_group = Where (whole_row, columns, group_size)
    groups_up = Add (columns, columns_per_group)
    groups_up_minus = Sub (groups_up, one)
    groups = Div (groups_up_minus, columns_per_group)
{PLACES}
    one_group = Equal (groups, one)
    group_columns = Where (one_group, one, columns)
    group_stop = Reshape (group_columns, second)
    any_group = Div (column, columns_per_group)
    group = Slice (any_group, start, group_stop)
"""


def _plane(p: int, following: int | None) -> str:
    """Nodes that add plane p to the running code; `base_<p>` is the plane's first byte for every column.

    A plane that the width does not have shrinks to one column of zero bits, so that it costs nothing.
    """
    lines = f"""
    p_{p} = Constant <value_int: int = {p}> ()
    most_{p} = Constant <value_int: int = {(1 << p) - 1}> ()
    quotient_{p} = Div (bits, p_{p})
    has_{p} = Mod (quotient_{p}, two)
    kept_minus_{p} = Mul (columns_minus, has_{p})
    kept_{p} = Add (kept_minus_{p}, one)
    stop_{p} = Reshape (kept_{p}, second)
    plane_bits_{p} = Mul (width, p_{p})
    plane_bits_up_{p} = Add (plane_bits_{p}, seven)
    size_{p} = Div (plane_bits_up_{p}, eight)
    field_{p} = Div (in_block, size_{p})
    field_first_{p} = Mul (field_{p}, size_{p})
    offset_{p} = Sub (in_block, field_first_{p})
    any_byte_{p} = Add (base_{p}, offset_{p})
    some_byte_{p} = Mul (any_byte_{p}, has_{p})
    byte_{p} = Slice (some_byte_{p}, start, stop_{p})
    any_shift_{p} = Mul (field_{p}, p_{p})
    some_shift_{p} = Slice (any_shift_{p}, start, stop_{p})
    shift_{p} = Cast <to = 2> (some_shift_{p})
    mask_64_{p} = Mul (most_{p}, has_{p})
    mask_{p} = Cast <to = 2> (mask_64_{p})
    bytes_{p} = Gather <axis = 1> (row_codes, byte_{p})
    shifted_{p} = BitShift <direction = "RIGHT"> (bytes_{p}, shift_{p})
    bits_{p} = BitwiseAnd (shifted_{p}, mask_{p})
"""
    if p == PLANE_WIDTHS[0]:
        lines += f"    code_{p} = Identity (bits_{p})\n"
    else:
        previous = PLANE_WIDTHS[PLANE_WIDTHS.index(p) - 1]
        lines += f"""
    room_64_{p} = Mul (p_{p}, has_{p})
    room_{p} = Cast <to = 2> (room_64_{p})
    moved_{p} = BitShift <direction = "LEFT"> (code_{previous}, room_{p})
    code_{p} = BitwiseOr (moved_{p}, bits_{p})
"""
    if following is not None:
        lines += f"    used_{p} = Mul (size_{p}, has_{p})\n    base_{following} = Add (base_{p}, used_{p})\n"
    return lines


def planes() -> str:
    """Nodes from row_codes uint8 [R, bytes] to code_1 uint8 [R, columns], the unpacked codes."""
    following = (*PLANE_WIDTHS[1:], None)
    return "".join(_plane(p, after) for p, after in zip(PLANE_WIDTHS, following))


def levels() -> str:
    """Nodes from row_codes uint8 [R, bytes] and row (int64 [R]) to level int8 [R, K], the codebook's entries.

    Everything as wide as the matrix is of the narrowest type that holds it, and one column wide where it does not
    depend on the column: onnxruntime keeps all of it at once while it folds constants.
    """
    return f"""{planes()}
    book_row = Div (row, rows_per_codebook)
    book_first = Mul (book_row, groups)
    book_column = Unsqueeze (book_first, second)
    book = Add (book_column, group)
    levels = BitShift <direction = "LEFT"> (one_u, bits_u)
    levels_64 = Cast <to = 7> (levels)
    book_at_64 = Mul (book, levels_64)
    book_at = Cast <to = 6> (book_at_64)
    code_32 = Cast <to = 6> (code_1)
    level_at = Add (book_at, code_32)
    all_levels = Reshape (codebook, flat)
    level = Gather (all_levels, level_at)
"""


_SCALED = """
    level_float = Cast <to = 1> (level)
    scale_row = Div (row, rows_per_scale)
    row_scales = Gather (scale, scale_row)
    column_scales = Gather <axis = 1> (row_scales, group)
    scale_float = Cast <to = 1> (column_scales)
    weight = Mul (level_float, scale_float)
"""


LEVEL_COUNT = """
    one_u = Cast <to = 12> (one)
    bits_u = Cast <to = 12> (bits)
"""

_MATMUL_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{CODEBOOK_MATMUL} <{_ATTRIBUTES}> (X, codes, codebook, scale) => (Y)
{{
{GEOMETRY}{LEVEL_COUNT}
    rows = Constant <value_int: int = @N> ()
    row = Range (zero, rows, one)
    row_codes = Identity (codes)
{levels()}{_SCALED}
    transposed = Transpose <perm = [1, 0]> (weight)
    Y = MatMul (X, transposed)
}}
"""

_GATHER_TEXT = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{CODEBOOK_GATHER} <{_ATTRIBUTES}> (ids, codes, codebook, scale) => (Y)
{{
{GEOMETRY}{LEVEL_COUNT}
    row = Reshape (ids, flat)
    row_codes = Gather (codes, row)
{levels()}{_SCALED}
    ids_shape = Shape (ids)
    columns_1d = Reshape (columns, second)
    out_shape = Concat <axis = 0> (ids_shape, columns_1d)
    Y = Reshape (weight, out_shape)
}}
"""


@cache
def function_bodies() -> tuple[onnx.FunctionProto, ...]:
    """FunctionProtos of every ai.athena operator."""
    return tuple(onnx.parser.parse_function(text) for text in (_MATMUL_TEXT, _GATHER_TEXT))
