"""Training-free search for an architecture within a budget, after arXiv 2409.17372, with a machine's cost in it.

A genome says which layers are left and how many heads; the feed-forward width is the widest that the budget then
admits, so every genome lies on the budget's edge and none is rejected for its size. What a layer keeps at a genome's
widths is what scores highest on the calibration text (parts/importance.py). Fitness is the loss on some calibration
sequences, and the budget is of weights, or of the cost model's time or energy of a token on a target.

The first population drops from 0 layers on those that do least, with all choices of heads; children are crossed
(layers that both parents keep, of the others each by a coin; heads of either) or mutated (a layer goes, comes back or
changes places; other heads). No genome is scored twice. Scores are kept on disk, and a stopped run replays them, so it
ends where it would have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from export.files.access import read_json, write_json
from toolchain.settings.shrinking.shrink import ShrinkSettings
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.candidates import InMemory, mean_loss, model_of
from toolchain.shrink.parts.cut import Cut, Sizes, cut_by_scores
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.importance import Importance, measured_importance
from toolchain.shrink.parts.slicing import cut_tensors
from toolchain.shrink.parts.work import Choice, Work
from toolchain.system.progress import Reporter

_STATE = "search.json"
_TRIES = 50  # children made for one that was not seen before
_CROSSED = 0.3  # share of children with two parents; in the paper 100 of 450


@dataclass(frozen=True, order=True)
class Genome:
    """An architecture: the layers that are left, and which of Freedom.heads."""

    layers: tuple[int, ...]
    heads: int

    @property
    def key(self) -> str:
        return json.dumps([self.layers, self.heads])


class Evolution:
    """The population and how it changes; knows nothing of models but the number of layers and choices of heads."""

    def __init__(self, layers: int, heads: int, seed: int) -> None:
        self._layers, self._heads = layers, heads
        self._draws = np.random.default_rng((seed, 0x5EA4C4))

    def first(self, by_importance: np.ndarray, is_whole: Callable[[Genome], bool | None], count: int) -> list[Genome]:
        """`count` genomes of all choices of heads, least important layers gone first.

        by_importance: layers, the least important first. is_whole: whether a genome's feed-forward parts are as wide as
        the source's, None where nothing of it fits; once they are, more layers go for nothing.
        """
        found = []
        for heads in reversed(range(self._heads)):
            for gone in range(self._layers):
                genome = Genome(tuple(sorted(int(n) for n in by_importance[gone:])), heads)
                whole = is_whole(genome)
                found += [] if whole is None else [genome]
                if whole:
                    break
        chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
        return [found[i] for i in chosen]

    def child(self, parents: list[Genome]) -> Genome:
        """A new genome from some of a ranked population."""
        if len(parents) > 1 and self._draws.random() < _CROSSED:
            one, other = (parents[i] for i in self._draws.choice(len(parents), 2, replace=False))
            kept = [n for n in range(self._layers) if self._from_either(n in one.layers, n in other.layers)]
            heads = int(self._draws.choice([one.heads, other.heads]))
            return Genome(tuple(kept) or one.layers, heads)
        return self._mutated(parents[int(self._draws.integers(len(parents)))])

    def _from_either(self, one: bool, other: bool) -> bool:
        return one if one == other else bool(self._draws.random() < 0.5)

    def _mutated(self, parent: Genome) -> Genome:
        kept, heads = set(parent.layers), parent.heads
        gone = sorted(set(range(self._layers)) - kept)
        kind = int(self._draws.integers(4))
        if kind in (0, 2) and len(kept) > 1:  # one goes; in 2 another comes for it
            kept.remove(int(self._draws.choice(sorted(kept))))
        if kind in (1, 2) and gone:
            kept.add(int(self._draws.choice(gone)))
        if kind == 3:
            heads = int(np.clip(heads + self._draws.choice([-1, 1]), 0, self._heads - 1))
        return Genome(tuple(sorted(kept)), heads)


class Fitness:
    """Losses of genomes, each computed once, in this run or in one before it."""

    def __init__(self, work: Work, importance: Importance, tokens: np.ndarray, state: Path) -> None:
        self._work, self._importance, self._tokens, self._state = work, importance, tokens, state
        self._source = InMemory(work.source)
        self.known = _read(state)

    def sizes(self, genome: Genome) -> Sizes | None:
        """The widest within the budget; None where there are none."""
        work, heads = self._work, self._work.freedom.heads[genome.heads]
        multiple = work.settings.multiple if work.freedom.channels else work.spec.feed_forward
        return work.budget.widest(heads, len(genome.layers), multiple, genome.layers)

    def is_whole(self, genome: Genome) -> bool | None:
        """Whether a genome's feed-forward parts are as wide as the source's; None where nothing of it fits."""
        sizes = self.sizes(genome)
        return None if sizes is None else sizes.feed_forward == self._work.spec.feed_forward

    def cut(self, genome: Genome) -> Cut:
        sizes, scores = self.sizes(genome), self._importance
        assert sizes is not None
        return cut_by_scores(sizes, self._work.spec, genome.layers, scores.heads, scores.channels)

    def loss(self, genome: Genome) -> float:
        """Nats a token of the scored sequences; infinite for a genome that nothing within the budget belongs to."""
        if genome.key not in self.known:
            work = self._work
            if self.sizes(genome) is None:
                self.known[genome.key] = math.inf
            else:
                cut = self.cut(genome)
                tensors = cut_tensors(self._source, work.spec, cut)
                model = model_of(work.freedom.config(cut.sizes, cut.layers), tensors, work.precision)
                self.known[genome.key] = mean_loss(model, self._tokens)
        return self.known[genome.key]

    def save(self) -> None:
        write_json(self._state, {"losses": {k: v if math.isfinite(v) else None for k, v in self.known.items()}})


def _read(path: Path) -> dict[str, float]:
    """Losses of a run that was stopped; none where the file is no list of them."""
    if not path.exists():
        return {}
    losses = read_json(path).get("losses")
    if not isinstance(losses, dict):
        return {}
    return {k: math.inf if v is None else float(v) for k, v in losses.items() if v is None or isinstance(v, float)}


def check(freedom: Freedom, budget: Budget, settings: ShrinkSettings) -> None:
    """Raises InputError for a budget that nothing meets: not one layer."""
    multiple = settings.multiple if freedom.channels else freedom.spec.feed_forward
    if not any(budget.widest(heads, 1, multiple) for heads in freedom.heads):
        raise InputError(f"{budget.text()}: no architecture is as small")


def choose(work: Work) -> Choice:
    """The best architecture that was found."""
    s, spec = work.settings.search, work.spec
    tokens = work.tokens()
    importance = measured_importance(work.source, spec, tokens, work.precision, work.quiet)
    fitness = Fitness(work, importance, tokens[: s.scored_sequences], work.folder / _STATE)
    evolution = Evolution(spec.layers, len(work.freedom.heads), work.settings.seed)
    ranked: list[tuple[float, Genome]] = []
    history = []
    with Reporter("Searching", s.population + s.generations * s.children, work.quiet) as report:

        def try_one(genome: Genome) -> None:
            ranked.append((fitness.loss(genome), genome))
            report.step(f"loss {min(ranked)[0]:.4f}")

        least_first = np.argsort(importance.layers, kind="stable")
        for genome in evolution.first(least_first, fitness.is_whole, s.population):
            try_one(genome)
        fitness.save()
        for _ in range(s.generations):
            parents = [genome for _, genome in sorted(ranked)[: s.population]]
            for _ in range(s.children):
                new = _unseen(evolution, parents, {g for _, g in ranked}, fitness)
                if new is not None:
                    try_one(new)
            fitness.save()
            history.append(min(ranked)[0])
    loss, best = min(ranked)
    cut = fitness.cut(best)
    about = {"search": {"loss": loss, "tried": len(ranked), "best_by_generation": history}}
    return Choice(work.freedom.config(cut.sizes, cut.layers), partial(cut_tensors, work.source, spec, cut), cut, about)


def _unseen(evolution: Evolution, parents: list[Genome], seen: set[Genome], fitness: Fitness) -> Genome | None:
    for _ in range(_TRIES):
        child = evolution.child(parents)
        if child not in seen and fitness.sizes(child) is not None:
            return child
    return None
