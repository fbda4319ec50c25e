"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from export.contract.errors import InputError


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token.

    min_p: tokens less likely than this share of the most likely one's probability, after temperature, are dropped.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError naming the option that is out of range."""
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"--temperature must be 0 to 100, not {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"--top-k must be 0 or more, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"--min-p must be 0 to 1, not {self.min_p}")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, not {self.seed}")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made when a token is drawn: numpy.random takes a while to import, and greedy decoding needs none."""
        return np.random.default_rng(self._settings.seed)

    def next(self, logits: np.ndarray) -> int:
        """The next token for logits float32 [vocabulary]; one of -inf is never drawn.

        top_k, top_p and min_p are applied in this order, as transformers does.
        """
        s = self._settings
        if s.temperature == 0.0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if s.top_k:
            order = order[: s.top_k]
        distance = logits[order].astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature makes -inf of every distance, which is what it means
            weights = np.exp((distance - distance[0]) / s.temperature)
        cumulative = np.cumsum(weights)
        if s.top_p < 1.0:  # the smallest set of most likely tokens that reaches top_p
            keep = int(np.searchsorted(cumulative, s.top_p * cumulative[-1])) + 1
            cumulative = cumulative[:keep]
        if s.min_p > 0.0:  # the most likely token weighs 1
            cumulative = cumulative[: int(np.count_nonzero(weights >= s.min_p))]
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        last = int(np.searchsorted(cumulative, cumulative[-1]))  # with a weight above 0; the draw may round to the sum
        return int(order[min(place, last)])
