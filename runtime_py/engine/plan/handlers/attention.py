"""Rotary positions, the KV append, and attention over both kinds of caches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats.codebook import DOMAIN
from export.contract.operators.attention import AttentionLayout
from export.contract.operators.integers import SDR_ATTENTION
from export.contract.operators.sink_attention import SINK_ATTENTION, SinkLayout
from runtime_py.engine.layout import attention as floats
from runtime_py.engine.layout import integer_cache, razor
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.earlier import over_earlier
from runtime_py.engine.plan.placement import Argument, Buffer, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import (
    AttentionShape,
    Tokens,
    form_of,
    turns_by_position,
    window_of_encoder,
    window_of_mask,
)
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.attention import Append, Attend, KvAppend, RazorAttend, RazorKvAppend, Rotate
from runtime_py.engine.steps.integer_attention import IntegerAttend, IntegerKvAppend
from runtime_py.engine.steps.step import Step

Maker = Callable[..., Step[Argument]]


@dataclass(frozen=True)
class Inputs:
    """Queries, keys and values of an attention node."""

    query: Tokens
    key: Tokens
    value: Tokens

    @staticmethod
    def of(context: Context, node: Node) -> Inputs:
        """One rotation of queries and keys alike is left to the KV append; others are computed before."""
        found = [context.values.get(name) for name in node.inputs[:3]]
        tokens = [value for value in found if isinstance(value, Tokens) and value.heads == 1]
        if len(tokens) != 3:
            raise Unplannable(f"the inputs of {node.name}")
        if tokens[0].rotation != tokens[1].rotation:
            tokens[:2] = [context.tokens(name) for name in node.inputs[:2]]
        return Inputs(*tokens)


@handles("", "RotaryEmbedding")
def rotary(context: Context, node: Node) -> None:
    x, heads = context.tokens(node.inputs[0]), int(node.attributes["num_heads"])
    pair = (node.inputs[1], node.inputs[2])
    if len(node.inputs) != 3 or heads < 1:
        raise Unplannable(f"the rotation {node.name}")
    if pair not in context.rotations:
        if not turns_by_position(context.folder, pair, context.counted_positions):
            raise Unplannable(f"the angles of {node.name}")
        context.rotations.append(pair)
    turned = replace(x, rotation=pair, turned_heads=heads)
    neighbours = bool(node.attributes.get("interleaved", 0))
    context.give(node.outputs[0], context.rotated(turned, interleaved=True) if neighbours else turned)


@handles("", "Attention")
def attention(context: Context, node: Node) -> None:
    """Over a cache of float16 or float32 numbers; the mask is causal, or an encoder's."""
    if over_earlier(context, node):
        return
    inputs = Inputs.of(context, node)
    heads, kv_heads = int(node.attributes["q_num_heads"]), int(node.attributes["kv_num_heads"])
    if heads < 1 or kv_heads < 1 or inputs.query.width % heads or heads % kv_heads:
        raise Unplannable(f"the heads of {node.name}")
    head_dim = inputs.query.width // heads
    causal = node.attributes.get("is_causal", 0) == 1
    if context.counted_positions:
        window = window_of_encoder(context.folder, node.inputs[3], causal)
    elif causal:
        window = window_of_mask(context.folder, node.inputs[3])
    else:
        raise Unplannable(f"the mask of {node.name}")
    scale, cap = float(node.attributes.get("scale", 1 / math.sqrt(head_dim))), node.attributes.get("softcap", 0.0)
    _plain(context, node, inputs, SinkLayout(heads, kv_heads, head_dim, scale), window, causal, softcap=float(cap))


@handles(DOMAIN, SINK_ATTENTION)
def sink_attention(context: Context, node: Node) -> None:
    """The same with a score of each head beside those of its keys; the mask is causal."""
    inputs = Inputs.of(context, node)
    try:
        layout = SinkLayout.of(node.attributes, inputs.query.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    if len(node.inputs) != 7 or not context.folder.is_constant(node.inputs[6]):
        raise Unplannable(f"the sinks of {node.name}")
    window, sinks = window_of_mask(context.folder, node.inputs[3]), context.vector(node.inputs[6], layout.heads)
    _plain(context, node, inputs, layout, window, causal=True, sinks=sinks)


def _plain(
    context: Context, node: Node, inputs: Inputs, layout: SinkLayout, window: int, causal: bool,
    softcap: float = 0.0, sinks: int = 0,
) -> None:  # fmt: skip
    """The steps of attention over numbers, or codes of them. sinks: their address, 0 for none."""
    head_dim, index = layout.head_dim, len(context.attention)
    if context.cache_bits != 16:
        _coded(context, node, inputs, layout, window, softcap, sinks)
        return
    blocks = floats.key_block_bytes(head_dim), floats.value_block_bytes(head_dim)
    items = numbers_of(index, head_dim)
    append_and_attend(
        context,
        node,
        inputs,
        AttentionShape(node.name, layout.heads, layout.kv_heads, head_dim, *blocks),
        append=partial(KvAppend[Argument], overflow=External(f"overflow.{index}"), **items),
        attend=partial(
            Attend[Argument],
            window=window,
            scale=layout.scale,
            softcap=softcap,
            causal=int(causal),
            sinks=sinks,
            **items,
        ),
    )


def numbers_of(index: int, head_dim: int, paged: bool = False) -> dict[str, Argument]:
    """How the cached numbers of attention number `index` lie."""
    return {
        "key_item": External(f"key_item.{index}"),
        "value_item": External(f"value_item.{index}"),
        "key_block": floats.key_block_numbers(head_dim, paged),
    }


def _coded(
    context: Context, node: Node, inputs: Inputs, layout: SinkLayout, window: int, softcap: float, sinks: int
) -> None:
    """The same over integer codes of context.cache_bits bits; the mask is causal."""
    head_dim, bits = layout.head_dim, context.cache_bits
    if head_dim > integer_cache.WIDEST:
        raise Unplannable(f"heads of {head_dim} as integers ({node.name})")
    size = integer_cache.block_bytes(head_dim, bits)
    shape = AttentionShape(node.name, layout.heads, layout.kv_heads, head_dim, size, size, bits=bits)
    append_and_attend(
        context,
        node,
        inputs,
        shape,
        append=partial(IntegerKvAppend[Argument], bits=bits),
        attend=partial(
            IntegerAttend[Argument], bits=bits, window=window, scale=layout.scale, softcap=softcap, sinks=sinks
        ),
    )


@handles(DOMAIN, SDR_ATTENTION)
def razor_attention(context: Context, node: Node) -> None:
    """Over a cache of razored codes; the mask is causal."""
    inputs = Inputs.of(context, node)
    if context.cache_bits != 16:
        raise Unplannable("the model keeps razored keys and values, of 4 bits")
    try:
        layout = AttentionLayout.of(node.attributes, inputs.query.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    head_dim, group = layout.head_dim, layout.form.group_size
    if layout.form.width != 4 or layout.form.flag_limit > 4 or (layout.groups > 1 and group % 16):
        raise Unplannable(f"a cache of {layout.form.width} bits in groups of {group} ({node.name})")
    blocks = razor.key_block_bytes(head_dim, group), razor.value_block_bytes(head_dim, group)
    shape = AttentionShape(node.name, layout.heads, layout.kv_heads, head_dim, *blocks, razored=True)
    codes = {
        "key_units": _units(context, node, node.inputs[6], layout.kv_heads),
        "value_units": _units(context, node, node.inputs[7], layout.kv_heads),
        "group": group,
    }
    append_and_attend(
        context,
        node,
        inputs,
        shape,
        append=partial(RazorKvAppend[Argument], form=form_of(layout.form), **codes),
        attend=partial(
            RazorAttend[Argument],
            window=window_of_mask(context.folder, node.inputs[3]),
            scale=layout.scale,
            softcap=layout.softcap,
            scores=External("scores"),
            **codes,
        ),
    )


def _units(context: Context, node: Node, name: str, kv_heads: int) -> int:
    """Address of a unit for each key-value head."""
    units = np.asarray(context.folder.constant(name), np.float32)
    if units.shape not in ((1,), (kv_heads,)) or not (np.isfinite(units).all() and (units > 0).all()):
        raise InputError(f"node {node.name}: its units must be positive, one or one for each key-value head")
    return context.stored(np.broadcast_to(units, kv_heads))


def append_and_attend(
    context: Context, node: Node, inputs: Inputs, shape: AttentionShape, append: Maker, attend: Maker,
    means: Maker | None = None, choose: Maker | None = None, chosen: Buffer | None = None,
) -> None:  # fmt: skip
    """The two steps of any attention, and between them those that choose pages. All take the fields of any cache."""
    query, key, value = inputs.query, inputs.key, inputs.value
    _check(context, node, inputs, shape)
    index = len(context.attention)
    context.attention.append(shape)
    context.cached |= {name: (index, place) for place, name in enumerate(node.outputs) if place}
    cache: dict[str, Argument] = {
        "query": query.place,
        "query_stride": query.stride,
        "keys": External(f"keys.{index}"),
        "values": External(f"values.{index}"),
        "capacity": External("capacity"),
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
    }
    rotation = {}
    if query.rotation is not None:
        number = context.rotations.index(query.rotation)
        rotation = {name: External(f"{name}.{number}") for name in ("cos", "sin", "half")}
    stored = context.cache_of(index)
    step = append(
        key=key.place,
        key_stride=key.stride,
        value=value.place,
        value_stride=value.stride,
        **rotation,
        **cache,
    )
    context.emit(step, [key.buffer, value.buffer], [query.buffer, key.buffer, stored])
    read = [query.buffer, stored]
    if means is not None and choose is not None and chosen is not None:
        context.emit(means(**cache), [stored], [stored])
        context.emit(choose(**cache), read, [chosen])
        read = [*read, chosen]
    out = context.new(query.width)
    step = attend(out=out.place, out_stride=out.stride, **cache)
    context.emit(step, read, [out.buffer])
    context.give(node.outputs[0], out)


def _check(context: Context, node: Node, inputs: Inputs, shape: AttentionShape) -> None:
    """Whether the widths fit, and queries and keys may be rotated where they lie. Raises Unplannable."""
    query, key, value = inputs.query, inputs.key, inputs.value
    same = key.width == value.width == shape.kv_heads * shape.head_dim and query.rotation == key.rotation
    if not same or value.rotation is not None:
        raise Unplannable(f"the heads or the rotation of {node.name}")
    if query.rotation is None:
        return
    if query.turned_heads != shape.heads or key.turned_heads != shape.kv_heads:
        raise Unplannable(f"a rotation of other heads than {node.name} has")
    if context.needed(query.buffer) or context.needed(key.buffer):
        raise Unplannable(f"queries or keys of {node.name} that are read again")
    for buffer in (query.buffer, key.buffer):
        context.quantized.pop(buffer, None)


def heads_of_rotations(context: Context) -> list[int]:
    """For each rotation the columns of the narrowest heads that it turns."""
    found: dict[str, int] = {}
    for planned in context.steps:
        step = planned.step
        if isinstance(step, Append | Rotate) and isinstance(step.half, External):
            assert isinstance(step.head_dim, int)
            found[step.half.name] = min(step.head_dim, found.get(step.half.name, step.head_dim))
    return [found.get(f"half.{number}", 0) for number in range(len(context.rotations))]
