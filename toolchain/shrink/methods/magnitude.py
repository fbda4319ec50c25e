"""Magnitude pruning: every layer keeps the heads and channels whose weights are largest. Reads no text.

A head's or channel's score is the sum of the squares of its weights, of each matrix relative to the matrix's mean
square, so that matrices of large weights do not decide alone. The baseline of all other methods.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from export.graph.spec import ModelSpec
from toolchain.settings.shrinking.shrink import ShrinkSettings
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cut import LayerCut, cut_by_scores
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.slicing import cut_tensors, slices
from toolchain.shrink.parts.work import Choice, Work
from toolchain.source.checkpoint import SourceModel
from toolchain.system.progress import Reporter


def check(freedom: Freedom, budget: Budget, settings: ShrinkSettings) -> None:
    """Raises InputError for a budget that nothing meets."""
    budget.even(freedom, settings.multiple)


def choose(work: Work) -> Choice:
    """All layers, cut evenly to the budget."""
    sizes = work.budget.even(work.freedom, work.settings.multiple)
    heads, channels = magnitudes(work.source, work.spec, work.quiet)
    cut = cut_by_scores(sizes, work.spec, range(work.spec.layers), heads, channels)
    config = work.freedom.config(sizes, cut.layers)
    return Choice(config, partial(cut_tensors, work.source, work.spec, cut), cut)


def magnitudes(source: SourceModel, spec: ModelSpec, quiet: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Scores of heads, float64 [layers, heads], and of channels, float64 [layers, feed_forward]."""
    heads = np.zeros((spec.layers, spec.heads))
    channels = np.zeros((spec.layers, spec.feed_forward))
    with Reporter("Scoring", spec.layers, quiet) as report:
        for layer in range(spec.layers):
            prefix = spec.block_name(layer)
            squares = {name: source.tensor(f"{prefix}{name}.weight").double().square() for name in spec.block.linears()}
            heads[layer], channels[layer] = summed_scores(spec, squares)
            report.step(f"layer {layer}")
    return heads, channels


def summed_scores(
    spec: ModelSpec, values: dict[str, torch.Tensor], relative: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a layer's heads [heads] and channels [feed_forward] from what is known of every weight.

    values: by linear layer, not negative [N, K]. Sums over what would go with a head or channel; relative: of each
    matrix in units of its mean. Heads that share keys and values share their scores.
    """
    vectors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, value in values.items():
        mean = (float(value.mean()) or 1.0) if relative else 1.0
        vectors[name] = (value.sum(dim=1) / mean).numpy(), (value.sum(dim=0) / mean).numpy()
    group = spec.heads // spec.kv_heads
    heads = np.zeros(spec.heads)
    for head in range(spec.heads):
        heads[head] = _sum(spec, vectors, LayerCut((head,), (head // group,), ()))
    channels = np.zeros(spec.feed_forward)
    every = LayerCut((), (), tuple(range(spec.feed_forward)))
    for name, kept in slices(spec, every).items():
        if kept.rows is not None and len(kept.rows):
            channels += vectors[name][0][kept.rows].reshape(-1, spec.feed_forward).sum(axis=0)
        elif kept.columns is not None and len(kept.columns):
            channels += vectors[name][1][kept.columns]
    return heads, channels


def _sum(spec: ModelSpec, vectors: dict[str, tuple[np.ndarray, np.ndarray]], part: LayerCut) -> float:
    total = 0.0
    for name, kept in slices(spec, part).items():
        if kept.rows is not None:
            total += float(vectors[name][0][kept.rows].sum())
        elif kept.columns is not None:
            total += float(vectors[name][1][kept.columns].sum())
    return total
