"""Attention over some pages of the cache."""

from __future__ import annotations

from functools import partial

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats.codebook import DOMAIN
from export.contract.operators.sparse_attention import SPARSE_ATTENTION, SparseLayout
from runtime_py.engine.layout import attention as floats
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.handlers.attention import Inputs, append_and_attend, numbers_of
from runtime_py.engine.plan.placement import Argument, External
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import AttentionShape, window_of_mask
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.attention import KvAppend
from runtime_py.engine.steps.pages import ChoosePages, PageMeans, SparseAttend

_MOST_BYTES = 1 << 28  # of a call's lists of pages


@handles(DOMAIN, SPARSE_ATTENTION)
def sparse_attention(context: Context, node: Node) -> None:
    """Over the pages of a cache that suit each query; the mask is causal."""
    inputs = Inputs.of(context, node)
    try:
        layout = SparseLayout.of(node.attributes, inputs.query.width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name}: attributes of {node.op_type} are wrong ({error})") from None
    if context.cache_bits != 16:
        raise Unplannable("sparse attention picks pages by cached keys of 16 bits")
    if window_of_mask(context.folder, node.inputs[3]):
        raise Unplannable(f"pages in a window ({node.name})")
    head_dim, index = layout.head_dim, len(context.attention)
    blocks = floats.key_block_bytes(head_dim, paged=True), floats.value_block_bytes(head_dim)
    shape = AttentionShape(node.name, layout.heads, layout.kv_heads, head_dim, *blocks, paged=True)
    items = numbers_of(index, head_dim, paged=True)
    width = layout.kv_heads * (1 + layout.pages)
    if 4 * width * context.chunk > _MOST_BYTES:
        raise Unplannable(f"lists of {layout.pages} pages ({node.name})")
    chosen = context.new(width)
    lists: dict[str, Argument] = {"chosen": chosen.place, "pages": layout.pages}
    append_and_attend(
        context,
        node,
        inputs,
        shape,
        append=partial(KvAppend[Argument], overflow=External(f"overflow.{index}"), **items),
        attend=partial(SparseAttend[Argument], window=0, scale=layout.scale, softcap=layout.softcap, **lists, **items),
        choose=partial(
            ChoosePages[Argument],
            first=layout.first,
            recent=layout.recent,
            scale=layout.scale,
            scores=External("scores"),
            longest=External("longest"),
            **lists,
            **items,
        ),
        means=partial(PageMeans[Argument], **items),
        chosen=chosen.buffer,
    )
