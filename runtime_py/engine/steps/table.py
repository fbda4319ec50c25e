"""The step table: what one step of the compiled machine is, and the names of its numbers.

A step is one row of STEP int64 numbers: its operation, whether all threads meet before it, whether it only concerns the
last token when asked, and up to 21 arguments, mostly addresses. plan/ writes the table, loop.py runs it.
"""

from __future__ import annotations

STEP = 24
OPERATION, MEET, LAST, ARGUMENTS = 0, 1, 2, 3

EMBED, EMBED_DENSE, NORM, QUANTIZE, MATMUL, GROUPED, DENSE, ACTIVATE, ADD, REMEMBER, ATTEND, SCALE, REORDER = range(13)
RAZOR, RAZOR_MATMUL, RAZOR_REMEMBER, RAZOR_ATTEND = range(13, 17)  # the integer operators
SPARSE = 17
NAMES = (
    "EMBED", "EMBED_DENSE", "NORM", "QUANTIZE", "MATMUL", "GROUPED", "DENSE", "ACTIVATE", "ADD", "REMEMBER", "ATTEND",
    "SCALE", "REORDER", "RAZOR", "RAZOR_MATMUL", "RAZOR_REMEMBER", "RAZOR_ATTEND", "SPARSE",
)  # fmt: skip

# Arguments by operation. Strides count floats; `quant` stands for three addresses: bytes, sums, scales (0 for none).
FIELDS: dict[int, tuple[str, ...]] = {
    EMBED: ("ids", "matrix", "groups", "group_size", "columns", "out"),
    EMBED_DENSE: ("ids", "table", "item_bytes", "columns", "out"),
    NORM: (
        "kind", "source", "stride", "scale", "bias", "epsilon", "columns", "out", "quant", "sums", "scales", "heads",
    ),
    QUANTIZE: ("source", "stride", "columns", "quant", "sums", "scales"),
    MATMUL: ("matrix", "width", "quant", "sums", "scales", "out", "rows", "bias", "accumulate", "row_bytes"),
    GROUPED: ("source", "stride", "matrix", "groups", "group_size", "out", "rows", "bias", "accumulate"),
    DENSE: ("source", "stride", "weights", "item_bytes", "columns", "out", "rows", "bias", "accumulate"),
    SPARSE: ("source", "stride", "starts", "columns", "weights", "out", "rows", "bias", "accumulate"),
    ACTIVATE: ("kind", "source", "stride", "gated", "gated_stride", "columns", "out", "quant", "sums", "scales"),
    SCALE: ("source", "stride", "factor", "columns", "out"),
    ADD: ("a", "a_stride", "b", "b_stride", "columns", "out"),
    REMEMBER: (
        "query", "query_stride", "key", "key_stride", "value", "value_stride", "cos", "sin", "half",
        "keys", "values", "capacity", "heads", "kv_heads", "head_dim", "key_item", "value_item", "overflow",
    ),
    ATTEND: (
        "query", "query_stride", "keys", "values", "capacity", "heads", "kv_heads", "head_dim", "window", "scale",
        "out", "out_stride", "softcap", "causal", "key_item", "value_item",
    ),
    REORDER: ("source", "stride", "order", "columns", "out"),
    RAZOR: ("source", "stride", "columns", "group", "unit", "form", "codes", "sums", "shifts", "units"),
    RAZOR_MATMUL: (  # the first ten as those of MATMUL
        "matrix", "width", "codes", "sums", "units", "out", "rows", "bias", "accumulate", "row_bytes",
        "shifts", "flags", "flag_stride", "group", "places",
    ),
    RAZOR_REMEMBER: (
        "query", "query_stride", "key", "key_stride", "value", "value_stride", "cos", "sin", "half",
        "keys", "values", "capacity", "heads", "kv_heads", "head_dim", "key_units", "value_units", "group", "form",
    ),
    RAZOR_ATTEND: (
        "query", "query_stride", "keys", "values", "capacity", "heads", "kv_heads", "head_dim", "window", "scale",
        "out", "out_stride", "softcap", "key_units", "value_units", "group", "scores",
    ),
}  # fmt: skip
RMS, LAYER = 0, 1  # kinds of NORM
