"""Attention over the keys and values of an earlier one: its nodes around the queries become one Attend on that cache.

Queries that are turned to [batch, heads, tokens, head_dim] lie as they did, [tokens, heads * head_dim]; they are kept
apart from plain values (Context.by_head), so that no other operator can take them for one.
"""

from __future__ import annotations

import math
from functools import partial

from export.artefacts.graph import Node
from runtime_py.engine.layout.attention import HALF_ITEM
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.values import window_of_mask
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.attention import Attend
from runtime_py.engine.steps.integer_attention import IntegerAttend

_TURN = [0, 2, 1, 3]


def turned(context: Context, node: Node) -> bool:
    """Plan a Transpose between tokens and heads; False where it is another one."""
    if list(node.attributes.get("perm", ())) != _TURN:
        return False
    found = context.by_head.get(node.inputs[0])
    if found is not None:
        context.give(node.outputs[0], found)
    else:
        context.give_by_head(node.outputs[0], context.tokens(node.inputs[0], in_heads=True))
    return True


def over_earlier(context: Context, node: Node) -> bool:
    """Plan an Attention over an earlier one's cache; False where it is another one."""
    query = context.by_head.get(node.inputs[0])
    if query is None:
        return False
    indices = {context.cached.get(name, (-1, -1)) for name in node.inputs[1:3]}
    index = min(number for number, _ in indices)
    if len(node.inputs) != 4 or len(node.outputs) != 1 or indices != {(index, 1), (index, 2)} or index < 0:
        raise Unplannable(f"the keys and values of {node.name}")
    shape, head_dim = context.attention[index], query.width // query.heads
    causal, heads = node.attributes.get("is_causal", 0), query.heads
    if shape.razored or shape.head_dim != head_dim or heads % shape.kv_heads or causal or context.counted_positions:
        raise Unplannable(f"the heads or the mask of {node.name}")
    out, stored = context.new(query.width), context.cache_of(index)
    over = partial(
        Attend[Argument],
        key_item=External(f"key_item.{index}"),
        value_item=External(f"value_item.{index}"),
        key_block=shape.key_block // HALF_ITEM,
        causal=1,
    )
    step = (over if shape.bits == 16 else partial(IntegerAttend[Argument], bits=shape.bits))(
        query=query.place,
        query_stride=query.stride,
        keys=External(f"keys.{index}"),
        values=External(f"values.{index}"),
        capacity=External("capacity"),
        heads=heads,
        kv_heads=shape.kv_heads,
        head_dim=head_dim,
        window=window_of_mask(context.folder, node.inputs[3]),
        scale=float(node.attributes.get("scale", 1 / math.sqrt(head_dim))),
        softcap=float(node.attributes.get("softcap", 0.0)),
        out=out.place,
        out_stride=out.stride,
    )
    context.emit(step, [query.buffer, stored], [out.buffer])
    context.give_by_head(node.outputs[0], out, heads)
    return True
