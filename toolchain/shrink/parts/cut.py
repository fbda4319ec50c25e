"""What is left of a model: which layers, heads and channels; how large the rest is.

All layers that are left have the same sizes, as config.json can say it for every family that transformers has. Which
heads and channels they keep is each layer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.graph.spec import ModelSpec


@dataclass(frozen=True, order=True)
class Sizes:
    """Of a model whose layers are alike. Heads share keys and values in groups of heads / kv_heads neighbours."""

    layers: int
    heads: int
    kv_heads: int
    feed_forward: int

    @staticmethod
    def of(spec: ModelSpec) -> Sizes:
        return Sizes(spec.layers, spec.heads, spec.kv_heads, spec.feed_forward)

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads

    def attention(self, spec: ModelSpec) -> int:
        """Weights of one layer's query, key, value and output matrices."""
        return spec.hidden_size * spec.head_dim * 2 * (self.heads + self.kv_heads)

    def channel(self, spec: ModelSpec) -> int:
        """Weights of one channel of one layer's feed-forward part."""
        gated = spec.block.gate is not None or spec.block.fused_gate_up is not None
        return spec.hidden_size * (3 if gated else 2)

    def weights(self, spec: ModelSpec) -> int:
        """Weights of all linear layers of the blocks; spec: of the whole model."""
        return self.layers * (self.attention(spec) + self.feed_forward * self.channel(spec))


@dataclass(frozen=True)
class LayerCut:
    """What one layer keeps: numbers in the source's order, rising."""

    heads: tuple[int, ...]  # query heads, as many of each group that is kept
    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """What is kept: the source's number of each layer, rising, and what is kept of it."""

    layers: tuple[int, ...]
    parts: tuple[LayerCut, ...]

    @property
    def sizes(self) -> Sizes:
        first = self.parts[0]
        return Sizes(len(self.layers), len(first.heads), len(first.kv_heads), len(first.channels))


def cut_by_scores(sizes: Sizes, spec: ModelSpec, layers: Sequence[int], heads: np.ndarray, channels: np.ndarray) -> Cut:
    """The cut to `sizes` that keeps in each of `layers` what scores highest.

    heads: float64 [layers of the source, heads]; channels: float64 [layers of the source, feed_forward]. A group of
    heads scores what its best heads, those that would be kept of it, score together.
    """
    own = Sizes.of(spec)
    parts = []
    for layer in layers:
        by_group = heads[layer].reshape(own.kv_heads, own.group)
        best = np.sort(np.argsort(-by_group, axis=1, kind="stable")[:, : sizes.group], axis=1)
        totals = np.take_along_axis(by_group, best, axis=1).sum(axis=1)
        groups = highest(totals, sizes.kv_heads)
        kept = (groups[:, None] * own.group + best[groups]).ravel()
        parts.append(LayerCut(_numbers(kept), _numbers(groups), _numbers(highest(channels[layer], sizes.feed_forward))))
    return Cut(tuple(layers), tuple(parts))


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest scores [n], rising; of equal scores the first. int64 [count]."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _numbers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
