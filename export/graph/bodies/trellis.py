"""The function body of TrellisCodebookMatMul.

States come from codes by doubling: a window of 2 codes from single ones, of 4 from 2, of 8 from 4, each time by looking
up so many rows; masks keep the window to state_bits.
"""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import all_rows, entries, one_dimension, product, row_scales, unpacked
from export.contract.formats.codebook import DOMAIN, OPSET
from export.contract.formats.trellis import TRELLIS_MATMUL

_ATTRIBUTES = ("bits", "K", "N", "state_bits", "rows_per_codebook", "rows_per_scale")


def _states(b: Body, codes: Value, chunk_rows: Value) -> Value:
    """From codes uint32 [N, K] to states of the same shape; a path starts anew after chunk_rows rows."""
    rows, columns, nothing = b.attribute("N"), b.attribute("K"), b.constant(0, "uint32")
    mask = b.named("state_mask", entries(b, b.attribute("state_bits")) - b.constant(1, "uint32"))
    missing = (rows + chunk_rows - 1) // chunk_rows * chunk_rows - rows
    whole = b.Pad(codes, b.Concat([0, 0], b.Reshape(missing, [1]), [0], axis=0), nothing)
    window = b.Reshape(whole, one_dimension(b, [-1], chunk_rows, columns))
    for count in (1, 2, 4):
        above = b.Slice(b.Pad(window, [0, count, 0, 0, 0, 0], nothing), [0], b.Reshape(chunk_rows, [1]), [1])
        moved = above << (b.attribute("bits") * count).astype("uint32")
        window = b.named(f"window_{2 * count}", (window | moved) & mask)
    by_row = b.Reshape(window, one_dimension(b, [-1], columns))
    return b.Slice(by_row, [0], b.Reshape(rows, [1]), [0], name="states")


def _matmul(b: Body, x: Value, codes: Value, codebook: Value, scale: Value) -> Value:
    rows, row = b.attribute("N"), all_rows(b)
    chunk_rows = b.Min(b.attribute("rows_per_codebook"), rows)
    codes_32 = unpacked(b, codes, b.attribute("K")).astype("uint32")
    states = _states(b, codes_32, chunk_rows).astype("int32")
    first = b.Unsqueeze(row // chunk_rows * entries(b, b.attribute("state_bits")).astype("int64"), [1]).astype("int32")
    level = b.Gather(b.Reshape(codebook, [-1]), first + states, name="level").astype("float32")
    return product(b, x, b.named("weight", level * row_scales(b, scale, row).astype("float32")))


@cache
def function_body() -> onnx.FunctionProto:
    """FunctionProto of TrellisCodebookMatMul."""
    inputs = ("X", "codes", "codebook", "scale")
    return function_proto(DOMAIN, OPSET, TRELLIS_MATMUL, inputs, _ATTRIBUTES, _matmul)


trellis_function = function_body
