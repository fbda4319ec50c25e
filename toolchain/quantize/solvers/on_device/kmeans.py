"""Weighted k-means on a line in torch, on whatever device, for many rows of values at once.

Levels begin as exact k-means of a few hundred bins of the sorted values (numerics/kmeans.py has bins from 16,384 values
on); rounds over all values follow.
"""

from __future__ import annotations

import numpy as np
import torch

from toolchain.system.device import wide

_BINS = 256  # of the values that share a codebook, at least
_BINS_A_LEVEL = 8
_LLOYD_ROUNDS = 12


def kmeans(values: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Weighted k-means of each row of values [C, n] with weights >= 0 [C, n]: centroids [C, count], ascending."""
    values, order = values.sort(dim=1)
    weights = weights.gather(1, order)
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, 1.0)
    kind = wide(values.device)  # a spread of squares in float32 would drown what close levels leave
    none, mass = torch.zeros(len(values), 1, dtype=kind, device=values.device), weights.to(kind)
    sums = [torch.cat([none, (mass * values.to(kind) ** k).cumsum(1)], dim=1) for k in range(3)]
    n = values.shape[1]
    edges = torch.from_numpy(_edges(n, bins(count))).to(values.device)
    cut = edges[_best_cuts(torch.stack([s[:, edges] for s in sums]), min(count, n))]
    levels = _means(values, sums, cut)
    for _ in range(_LLOYD_ROUNDS):
        middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        cut = torch.cat([cut[:, :1], torch.searchsorted(values, middles), cut[:, -1:]], dim=1)
        levels = _means(values, sums, cut)
    return torch.cat([levels, levels[:, -1:].expand(-1, count - levels.shape[1])], dim=1)


def bins(count: int) -> int:
    return max(_BINS, _BINS_A_LEVEL * count)


def _edges(values: int, bins: int) -> np.ndarray:
    """Where the bins of sorted values begin and end, int64: single values at both ends, where few are far apart."""
    if values <= bins:
        return np.arange(values + 1)
    ends = bins // 8
    middle = np.linspace(ends, values - ends, bins - 2 * ends + 1).astype(np.int64)
    return np.unique(np.concatenate([np.arange(ends), middle, np.arange(values - ends, values + 1)]))


def _means(values: torch.Tensor, sums: list[torch.Tensor], cut: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the sorted values between neighbours of cut [C, k + 1]; of an empty span, the value there."""
    mass, total = (s.gather(1, cut[:, 1:]) - s.gather(1, cut[:, :-1]) for s in sums[:2])
    last = values.shape[1] - 1
    low, high = values.gather(1, cut[:, :-1].clamp_max(last)), values.gather(1, (cut[:, 1:] - 1).clamp(0, last))
    mean = torch.where(mass > 0, (total / torch.where(mass > 0, mass, 1.0)).float(), low)
    return torch.minimum(torch.maximum(mean, low), torch.maximum(low, high)).cummax(dim=1)[0]


def _best_cuts(sums: torch.Tensor, count: int) -> torch.Tensor:
    """Edges int64 [C, count + 1] of the best `count` spans of the bins whose prefix sums [3, C, bins + 1] these are."""
    mass, total, square = (s[:, None, :] - s[:, :, None] for s in sums)  # [C, from, to]
    cost = square - torch.where(mass > 0, total.square() / torch.where(mass > 0, mass, 1.0), 0.0)
    edges = cost.shape[1]
    backward = torch.ones(edges, edges, dtype=torch.bool, device=cost.device).tril()  # spans of one bin at least
    cost = cost.clamp_min_(0.0).masked_fill_(backward, torch.inf)
    best, splits = cost[:, 0], []
    for _ in range(1, count):
        best, split = (best[:, :, None] + cost).min(dim=1)
        splits.append(split)
    cut = [torch.full((len(cost), 1), edges - 1, dtype=torch.int64, device=cost.device)]
    for split in reversed(splits):
        cut.append(split.gather(1, cut[-1]))
    return torch.cat([*cut, torch.zeros_like(cut[0])], dim=1).flip(1)
