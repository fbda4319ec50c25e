"""The function body of TenderQuantize (export/contract/operators/tender.py)."""

from __future__ import annotations

from functools import cache

import onnx

from export.contract.body import Body, Value, function_proto
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.operators.tender import TENDER_QUANTIZE
from export.graph.bodies.razor import code_top, power_of_two


def _quantize(b: Body, x: Value, order: Value, middle: Value, shifts: Value, unit: Value) -> tuple[Value, ...]:
    outer, runs, group = b.Shape(x, start=0, end=-1), b.Shape(shifts), b.Reshape(b.attribute("group_size"), [1])
    channels = b.Max(order, b.constant(0, "int32"))
    rest = b.named("rest", b.Gather(x, channels, axis=-1) - middle)
    step = b.Reshape(unit * power_of_two(b, shifts).astype("float32"), [-1, 1])
    limit = (code_top(b) - 1).astype("float32")
    by_run = b.Reshape(rest, b.Concat(outer, runs, group, axis=0))
    codes = b.Clip(b.Round(by_run / step), -limit, limit)
    there = b.Reshape(b.GreaterOrEqual(order, b.constant(0, "int32")), b.Concat(runs, group, axis=0))
    return (
        b.Where(there, codes, 0.0).astype("int8"),
        b.Expand(shifts, b.Concat(outer, runs, axis=0)),
        b.Expand(unit, b.Concat(outer, [1], axis=0)),
    )


@cache
def tender_function() -> onnx.FunctionProto:
    """FunctionProto of TenderQuantize."""
    inputs, outputs = ("X", "order", "middle", "shifts", "unit"), ("codes", "flags", "units")
    return function_proto(DOMAIN, OPSET, TENDER_QUANTIZE, inputs, ("width", "group_size"), _quantize, outputs)
