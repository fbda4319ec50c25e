"""Attention with a cache becomes SparseAttention, in which every query reads a fixed number of pages of keys.

before  Attention(query, key, value, mask, past_key, past_value)        causal, over all keys
after   SparseAttention(query, key, value, mask, past_key, past_value)  with pages, first, recent

Attention over a window stays as it is: it reads no more than its window anyway.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION, sparse_attention_function
from export.contract.pages import Pages
from export.lowering.group_query_attention import NO_WINDOW, window_of
from export.lowering.stored import Kept

_INPUTS, _OUTPUTS = 6, 3  # with a cache
_ATTRIBUTES = frozenset({"q_num_heads", "kv_num_heads", "scale", "softcap", "is_causal"})


def run(model: ir.Model, pages: Pages, dense: Collection[int] = ()) -> tuple[int, list[Kept]]:
    """Replace attention nodes in place: how many, and those that stay.

    dense: numbers of those that stay as they are, counted from the first.
    """
    graph = model.graph
    found = [
        node for node in graph if node.op_type == "Attention" and node.domain == "" and len(node.inputs) >= _INPUTS
    ]
    count, kept = 0, list[Kept]()
    for number, node in enumerate(found):
        why = "it is to stay dense" if number in dense else _obstacle(node)
        if why:
            kept.append(Kept(str(node.name), node.op_type, why))
            continue
        _replace(graph, node, pages)
        count += 1
    if count:
        body = ir.serde.deserialize_function(sparse_attention_function())
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return count, kept


def _obstacle(node: ir.Node) -> str:
    """Why SparseAttention cannot stand for a node; empty when it can."""
    unknown = sorted(set(node.attributes) - _ATTRIBUTES)
    if unknown:
        return f"attribute {unknown[0]} has no counterpart"
    if "is_causal" not in node.attributes or not node.attributes["is_causal"].as_int():
        return "it is not causal"
    given, made = list(node.inputs), list(node.outputs)
    if any(value is not None for value in given[_INPUTS:]) or len(made) != _OUTPUTS:
        return "it has inputs or outputs that have no counterpart"
    if any(value is None for value in given[:_INPUTS]):
        return "it lacks a mask, or keys and values of a cache"
    try:
        return "" if window_of(node.inputs[3]) == NO_WINDOW else "it reads a window"
    except ValueError as error:
        return str(error)


def _replace(graph: ir.Graph, node: ir.Node, pages: Pages) -> None:
    query, *_ = node.inputs
    heads = node.attributes["q_num_heads"].as_int()
    attributes: dict[str, int | float] = {
        "q_num_heads": heads,
        "kv_num_heads": node.attributes["kv_num_heads"].as_int(),
        "softcap": node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0,
        "pages": pages.pages,
        "first": pages.first,
        "recent": pages.recent,
    }
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes["scale"].as_float()
    else:
        width = None if query is None or query.shape is None else query.shape[-1]
        if not isinstance(width, int):
            raise ValueError(f"{node.name}: its queries do not state their width")
        attributes["scale"] = 1 / math.sqrt(width / heads)
    fresh = ir.node(SPARSE_ATTENTION, list(node.inputs[:6]), attributes, domain=DOMAIN, num_outputs=3, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)
