"""Rotary positions, the write into the cache, and attention for the planner.

Each function plans one node and raises Unplannable where there is no step for it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from export.artefacts.reader import Node
from runtime_py.engine.kernels import attention
from runtime_py.engine.plan.plan import Argument, External
from runtime_py.engine.plan.values import (
    AttentionShape,
    Tokens,
    Unplannable,
    mask_hides_padding_only,
    turns_by_position,
    window_of_mask,
)
from runtime_py.engine.steps import table as op

if TYPE_CHECKING:
    from runtime_py.engine.plan.planner import Planner


def rotary(planner: Planner, node: Node) -> None:
    x, heads = planner.tokens(node.inputs[0]), int(node.attributes["num_heads"])
    pair = (node.inputs[1], node.inputs[2])
    if node.attributes.get("interleaved", 0) or len(node.inputs) != 3 or heads < 1:
        raise Unplannable(f"the rotation {node.name}")
    if pair not in planner.rotations:
        if not turns_by_position(planner.folder, pair):
            raise Unplannable(f"the angles of {node.name}")
        planner.rotations.append(pair)
    planner.give(node.outputs[0], replace(x, rotation=pair, turned_heads=heads))


def turn_in_place(planner: Planner, node: Node, query: Tokens, key: Tokens, heads: int, kv_heads: int) -> None:
    """Check that queries and keys may be rotated where they lie. Raises Unplannable."""
    if query.rotation is None:
        return
    if query.turned_heads != heads or key.turned_heads != kv_heads:
        raise Unplannable(f"a rotation of other heads than {node.name} has")
    if planner.needed(query.buffer) or planner.needed(key.buffer):
        raise Unplannable(f"queries or keys of {node.name} that are read again")
    for buffer in (query.buffer, key.buffer):
        planner.quantized.pop(buffer, None)


def attend(planner: Planner, node: Node) -> None:
    query, key, value = (planner.values.get(name) for name in node.inputs[:3])
    if not (isinstance(query, Tokens) and isinstance(key, Tokens) and isinstance(value, Tokens)):
        raise Unplannable(f"the inputs of {node.name}")
    heads, kv_heads = int(node.attributes["q_num_heads"]), int(node.attributes["kv_num_heads"])
    if heads < 1 or kv_heads < 1 or query.width % heads:
        raise Unplannable(f"the heads of {node.name}")
    head_dim = query.width // heads
    causal = node.attributes.get("is_causal", 0) == 1
    plain = causal or mask_hides_padding_only(planner.folder, node.inputs[3])
    same = key.width == value.width == kv_heads * head_dim and query.rotation == key.rotation
    if not plain or not same or value.rotation is not None or heads % kv_heads:
        raise Unplannable(f"the heads or the mask of {node.name}")
    if query.heads != 1 or key.heads != 1 or value.heads != 1:
        raise Unplannable(f"the inputs of {node.name}")
    turn_in_place(planner, node, query, key, heads, kv_heads)
    window = window_of_mask(planner.folder, node.inputs[3]) if causal else 0
    index = len(planner.attention)
    blocks = attention.key_block_bytes(head_dim), attention.value_block_bytes(head_dim)
    planner.attention.append(AttentionShape(node.name, heads, kv_heads, head_dim, *blocks))
    cache: dict[str, Argument] = {
        "keys": External(f"keys.{index}"),
        "values": External(f"values.{index}"),
        "key_item": External(f"key_item.{index}"),
        "value_item": External(f"value_item.{index}"),
        "capacity": External("capacity"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
    }
    rotation = {}
    if query.rotation is not None:
        number = planner.rotations.index(query.rotation)
        rotation = {name: External(f"{name}.{number}") for name in ("cos", "sin", "half")}
    arguments: dict[str, Argument] = {
        "query": query.place,
        "query_stride": query.stride,
        "key": key.place,
        "key_stride": key.stride,
        "value": value.place,
        "value_stride": value.stride,
        **rotation,
        **cache,
        "overflow": External(f"overflow.{index}"),
    }
    stored = planner.cache_of(index)
    planner.emit(op.REMEMBER, arguments, [key.buffer, value.buffer], [query.buffer, key.buffer, stored])
    out = planner.new(query.width)
    scale = float(node.attributes.get("scale", 1 / math.sqrt(head_dim)))
    arguments = {
        "query": query.place,
        "query_stride": query.stride,
        **cache,
        "window": window,
        "scale": scale,
        "softcap": float(node.attributes.get("softcap", 0.0)),
        "causal": int(causal),
        "out": out.place,
        "out_stride": out.stride,
    }
    planner.emit(op.ATTEND, arguments, [query.buffer, stored], [out.buffer])
    planner.give(node.outputs[0], out)
