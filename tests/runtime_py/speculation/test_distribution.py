"""Sampled answers with guesses have the model's distribution: counts over a small vocabulary and its probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from runtime_py.speculation.lookup import Lookup
from runtime_py.speculation.proposer import Guess
from runtime_py.speculation.speculation import Speculation
from runtime_py.text.generation import Generation, GenerationRequest
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.sampling import SamplingSettings

VOCABULARY, TEMPERATURE = 6, 0.8
TABLE = (0.8 * np.random.default_rng(3).standard_normal((VOCABULARY, VOCABULARY))).astype(np.float32)


@dataclass
class _State:
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)


class Chain:
    """A runner whose logits depend on the last token alone."""

    vocab_size, most_together, adapters = VOCABULARY, 16, ()

    def new_state(self):
        return _State()

    def adapt(self, state, adapter):
        assert adapter == ""

    def rewind(self, state, length):
        del state.tokens[length:]
        return length

    def forward(self, state, tokens, last_only=False):
        state.tokens += [int(token) for token in tokens]
        return TABLE[list(tokens)][-1:] if last_only else TABLE[list(tokens)]

    def advance(self, states, runs):
        return [list(self.forward(state, run)) for state, run in zip(states, runs)]


class LikelyNext:
    """Guesses the likeliest token behind each, as a draft model does: right often enough to bend a wrong sampler."""

    def propose(self, tokens, most):
        found = [int(TABLE[tokens[-1]].argmax())]
        while len(found) < most:
            found.append(int(TABLE[found[-1]].argmax()))
        return Guess(found[:most], 20)


def unlikely(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations Pearson's statistic lies above its mean (Wilson and Hilferty, 1931)."""
    freedom = counts.size - len(counts)
    spread = 2 / (9 * freedom)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


@pytest.mark.parametrize("proposer", [LikelyNext, Lookup, None], ids=["likely", "look-up", "nothing guessed"])
def test_counts_have_the_models_distribution(demo_model, proposer):
    tokenizer, runner = load_tokenizer(demo_model), Chain()
    counts = np.zeros((VOCABULARY, VOCABULARY))
    speculation = Speculation(runner, "3", proposer) if proposer else None
    for seed in range(300):
        request = GenerationRequest((1, 2, 3, 1, 2), SamplingSettings(TEMPERATURE, seed=seed), max_tokens=60)
        generation = Generation(request, runner, tokenizer, runner.new_state(), speculation=speculation)
        while not generation.finish_reason:
            list(generation.pieces())
        for before, token in zip([2, *generation.tokens], generation.tokens):
            counts[before, token] += 1
    if speculation:
        assert 0.1 < speculation.counts.accepted / speculation.counts.guessed < 0.9
    weights = np.exp(TABLE.astype(np.float64) / TEMPERATURE)
    expected = weights / weights.sum(axis=1, keepdims=True) * counts.sum(axis=1, keepdims=True)
    assert expected.min() > 5  # or the statistic means nothing
    assert unlikely(counts, expected) < 3
    shifted = np.roll(expected, 1, axis=1)
    assert unlikely(counts, shifted) > 10  # the test can fail
