"""Where the sizes of channels may move between the layers of a block at no cost at run time.

What feeds a column of a matrix can be divided by a factor, and the column multiplied by it: the block computes the
same. That is so for

- a norm's weight and bias, before the query, key and value layers and before the feed-forward part;
- the rows of the value layer, before the attention's output layer; heads that share values share factors;
- the rows of the up layer, before the down layer, where nothing but a product (a gated unit) or ReLU is between them;
- the values of a short convolution, before its output layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from export.graph.spec import BlockNames, ModelSpec


@dataclass(frozen=True, eq=False)
class Site:
    """Channels between layers of one block; names are relative to it.

    Their factors multiply the columns of `readers` and `floats`, and divide the norm, or rows of `layer`.
    """

    readers: tuple[str, ...]  # linear layers with codes
    floats: tuple[str, ...] = ()  # that read the same, and have no codes
    norm: str | None = None
    layer: str | None = None
    rows: np.ndarray | None = None  # int64 [channels]: which of the layer's outputs they are
    kernel: str | None = None  # a convolution of each channel behind that layer: its bias is divided, too
    columns: np.ndarray | None = None  # int64 [K]: the channel of each column of the readers; None: each its own


def sites(spec: ModelSpec, number: int) -> tuple[Site, ...]:
    """All sites of a stored block. No two have a reader in common."""
    names = spec.names(number)
    found = [*_norms(spec, number, names)]
    if names.attends and not names.value_norm and (names.value or names.fused_qkv):
        found.append(_values(spec, names))
    elif names.convolution is not None:
        found.append(_convolution(spec, names))
    return (*found, *_feed_forward(spec, names))


def _norms(spec: ModelSpec, number: int, block: BlockNames) -> Iterator[Site]:
    attention, feed_forward = block.first(), block.feed_forward_readers()
    alone = number in spec.layers_without_attention_norm or block.laurel is not None  # which adds the normed states
    before = None if alone else block.attention_norm
    groups = [(before, attention), (block.mlp_norm, feed_forward)]
    if block.mlp_norm is None and spec.parallel_residual:  # both parts read the attention's norm
        groups = [(before, attention + feed_forward)]
    for norm, readers in groups:
        if norm is not None:
            yield Site(readers, block.first_floats() if norm == before else (), norm)


def _values(spec: ModelSpec, block: BlockNames) -> Site:
    assert block.attention_output is not None
    channels = np.arange(spec.kv_heads * spec.head_dim).reshape(spec.kv_heads, 1, spec.head_dim)
    columns = np.repeat(channels, spec.heads // spec.kv_heads, axis=1).ravel()
    layer, rows = block.value or block.fused_qkv, value_rows(spec, block)
    return Site((block.attention_output,), layer=layer, rows=rows, columns=columns)


def _convolution(spec: ModelSpec, block: BlockNames) -> Site:
    """A convolution of each channel is linear: its values, the third part of the first layer, and its bias."""
    assert block.convolution is not None and block.attention_output is not None
    rows = 2 * spec.hidden_size + np.arange(spec.hidden_size)
    own = block.convolution
    return Site((block.attention_output,), layer=own.input, rows=rows, kernel=own.kernel)


def _feed_forward(spec: ModelSpec, block: BlockNames) -> Iterator[Site]:
    gated = block.gate is not None or block.fused_gate_up is not None
    if block.down is None or (not gated and spec.activation != "relu"):
        return
    width = block.feed_forward or spec.feed_forward
    rows = np.arange(width) + (width if block.fused_gate_up else 0)
    yield Site((block.down,), layer=block.fused_gate_up or block.up, rows=rows)


def value_rows(spec: ModelSpec, block: BlockNames) -> np.ndarray:
    """Which outputs of the layer that makes the values are values, int64 [kv_heads * head_dim], in their order."""
    count = spec.kv_heads * spec.head_dim
    if block.value is not None:
        return np.arange(count)
    if not spec.fused_qkv_by_head:
        return (spec.heads + spec.kv_heads) * spec.head_dim + np.arange(count)
    heads = np.arange(spec.kv_heads)[:, None] * 3 * spec.head_dim + 2 * spec.head_dim
    return (heads + np.arange(spec.head_dim)).ravel()
