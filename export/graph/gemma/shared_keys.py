"""Attention over the keys and values of an earlier layer, those that this layer's own cache would be.

Queries are brought into the form that cached keys and values have, which is standard ONNX, too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.layers import BATCH, SEQUENCE
from export.graph.spec import HeadSizes
from export.graph.writer import Dim, GraphWriter


def attend_to_earlier(
    g: GraphWriter, name: str, query: ir.Value, cache: tuple[ir.Value, ...], mask: ir.Value, heads: HeadSizes,
    attributes: dict[str, float],
) -> ir.Value:  # fmt: skip
    """float32 [batch, sequence, heads * head_dim] from queries of that form.

    cache: keys and values of all tokens so far, float32 [batch, kv_heads, total, head_dim]; mask: bool
    [batch, 1, sequence, total], True where a query sees a key.
    """
    flat: list[Dim] = [BATCH, SEQUENCE, heads.queries]
    apart: list[Dim] = [BATCH, SEQUENCE, heads.heads, heads.head_dim]
    by_head: list[Dim] = [BATCH, heads.heads, SEQUENCE, heads.head_dim]
    split = g.constant(
        f"shape.heads_{heads.heads}_{heads.head_dim}", np.asarray([0, 0, heads.heads, heads.head_dim], np.int64)
    )
    joined = g.constant(f"shape.width_{heads.queries}", np.asarray([0, 0, heads.queries], np.int64))
    query = g.op("Reshape", f"{name}/split_heads", [query, split], apart)
    query = g.op("Transpose", f"{name}/by_head", [query], by_head, perm=[0, 2, 1, 3])
    out = g.op("Attention", name, [query, *cache, mask], by_head, attributes=attributes, is_causal=0)
    out = g.op("Transpose", f"{name}/by_token", [out], apart, perm=[0, 2, 1, 3])
    found: ir.Value = g.op("Reshape", f"{name}/join_heads", [out, joined], flat)
    return found
