"""The work of SparseAttention: the pages that are read, and the means of all pages, by which these are found.

The mean of a page is as large as a key, and meets a query in as many products; the softmax over pages is one over keys.
So two pages that are looked at count as one more pair of a query with a key and its value.
"""

from __future__ import annotations

from dataclasses import replace

from export.artefacts.graph import Node
from export.contract.operators.sparse_attention import SparseLayout
from export.contract.pages import PAGE
from hw_model.graph_work.attention_nodes import attention, causal_pairs
from hw_model.graph_work.context import Context
from hw_model.graph_work.operation import CACHE_BYTES, Operation


def sparse_attention(node: Node, context: Context) -> Operation:
    """A query multiplies with at most `pages` pages. A pass reads no key twice, and the mean of each page once.

    A pass of several tokens is taken to read as many other keys for each of them.
    """
    layout = node.attributes_as(SparseLayout.of, context.shape(node.inputs[0])[-1])
    phase = context.phase
    found = attention(node, context, layout.heads, layout.kv_heads, layout.head_dim, causal_pairs(phase, 0))
    found = replace(found, selected=layout.keys)
    pairs = int(found.keys(phase).sum())
    row = CACHE_BYTES * layout.kv_heads * layout.head_dim * phase.sequences
    means = phase.total // PAGE if phase.total > layout.keys else 0
    return replace(
        found,
        macs=2 * pairs * layout.heads * layout.head_dim,
        vector_ops=found.vector_ops // found.pairs * pairs,
        cache_read_bytes=2 * row * (min(phase.total, layout.keys * phase.tokens)) + row * means,
        cache_write_bytes=found.cache_write_bytes + row * (phase.total // PAGE - phase.past // PAGE),
    )
