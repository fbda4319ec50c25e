"""Which keys the queries of an encoder may see: all that are no padding, those near enough, those not behind."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.layers import BATCH, SEQUENCE
from export.graph.spec import ModelSpec
from export.graph.writer import Dim, GraphWriter

BOOL, LONG = ir.DataType.BOOL, ir.DataType.INT64
_GRID: list[Dim] = [SEQUENCE, SEQUENCE]
_FULL: list[Dim] = [BATCH, 1, SEQUENCE, SEQUENCE]


def encoder_masks(g: GraphWriter, spec: ModelSpec, attention_mask: ir.Value) -> dict[int | None, ir.Value]:
    """By window: bool [batch, 1, sequence, sequence], True where a query sees a key.

    onnxruntime wants the queries in full, and what looks back only spelled out beside `is_causal`.
    """
    at = "/model/mask"
    masks: dict[int | None, ir.Value] = {}
    axes = g.constant("axis.heads_and_queries", np.asarray([1, 2], np.int64))
    keep = g.op("Cast", f"{at}/not_padding", [attention_mask], [BATCH, SEQUENCE], BOOL, to=BOOL)
    visible = g.op("Unsqueeze", f"{at}/visible", [keep, axes], [BATCH, 1, 1, SEQUENCE], BOOL)
    for width in sorted({spec.window(i) for i in range(spec.layers)}, key=lambda w: w or 0):
        name = at if width is None else f"{at}/window_{width}"
        if width is None and not spec.looks_back_only:
            masks[width] = _repeated(g, visible, attention_mask, name)
        else:
            allowed = _allowed(g, places(g, attention_mask), width, spec.looks_back_only, name)
            masks[width] = g.op("And", name, [visible, allowed], _FULL, BOOL)
    return masks


def places(g: GraphWriter, attention_mask: ir.Value) -> ir.Value:
    """0, 1, ...: int64 [sequence]; written once."""
    at, made = "/model/positions/places", next((n for n in g.nodes if n.name == "/model/positions/places"), None)
    if made is not None:
        return made.outputs[0]
    zero, one = (g.constant(n, np.asarray(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
    first = g.constant("axis.first", np.asarray([0], np.int64))
    length_1d = g.op("Shape", "/model/positions/length_1d", [attention_mask], [1], LONG, start=1, end=2)
    length = g.op("Squeeze", "/model/positions/length", [length_1d, first], [], LONG)
    out: ir.Value = g.op("Range", at, [zero, length, one], [SEQUENCE], LONG)
    return out


def _repeated(g: GraphWriter, visible: ir.Value, attention_mask: ir.Value, name: str) -> ir.Value:
    """The same keys for every query."""
    length = g.op("Shape", f"{name}/length", [attention_mask], [1], LONG, start=1, end=2)
    one = g.constant("mask.one", np.asarray([1], np.int64))
    shape = g.op("Concat", f"{name}/shape", [one, one, length, one], [4], LONG, axis=0)
    out: ir.Value = g.op("Expand", name, [visible, shape], _FULL, BOOL)
    return out


def _allowed(g: GraphWriter, keys: ir.Value, width: int | None, back_only: bool, name: str) -> ir.Value:
    """bool [queries, keys]: behind by less than `width`, and ahead by less, or not at all with back_only."""
    second = g.constant("axis.second", np.asarray([1], np.int64))
    queries = g.op("Unsqueeze", f"{name}/queries", [keys, second], [SEQUENCE, 1], LONG)
    conditions = [g.op("LessOrEqual", f"{name}/not_ahead", [keys, queries], _GRID, BOOL)] if back_only else []
    pairs = {"behind": (queries, keys)} if back_only else {"behind": (queries, keys), "ahead": (keys, queries)}
    for side, pair in pairs.items() if width is not None else ():
        limit = g.constant(f"mask.window_{width}", np.asarray(width, np.int64))
        distance = g.op("Sub", f"{name}/{side}", pair, _GRID, LONG)
        conditions.append(g.op("Less", f"{name}/near_{side}", [distance, limit], _GRID, BOOL))
    if len(conditions) == 1:
        return conditions[0]
    out: ir.Value = g.op("And", f"{name}/allowed", conditions, _GRID, BOOL)
    return out
