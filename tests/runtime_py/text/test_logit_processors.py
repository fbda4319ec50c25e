"""Rules on logits against transformers' own processors, and against slow references where it has none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from export.contract.errors import InputError
from runtime_py.text.logit_processors import NEUTRAL, LogitProcessor, LogitRules
from runtime_py.text.sampling import Sampler, SamplingSettings

VOCABULARY = 12
TOKENS = st.integers(0, VOCABULARY - 1)
PROMPTS = st.lists(TOKENS, min_size=1, max_size=12)
ANSWERS = st.lists(TOKENS, max_size=8)
LOGITS = st.lists(
    st.floats(-20, 20, width=32, allow_nan=False), min_size=VOCABULARY, max_size=VOCABULARY
).map(lambda values: np.array(values, np.float32))  # fmt: skip
RULES = st.builds(
    LogitRules,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.2, 3.0]),
    min_tokens=st.integers(0, 6),
    min_length=st.integers(0, 14),
    no_repeat_ngram_size=st.integers(0, 4),
    bad_words_ids=st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    suppress_tokens=st.lists(st.integers(0, 2 * VOCABULARY), max_size=3).map(tuple),
    begin_suppress_tokens=st.lists(TOKENS, max_size=3).map(tuple),
)


def ours(rules: LogitRules, logits, prompt, answer=(), stops=()) -> np.ndarray:
    processor = LogitProcessor(rules, prompt, stops, len(logits))
    for token in answer:
        processor.note(token)
    return processor.apply(logits)


def of_transformers(rules: LogitRules, logits, prompt, answer, stops) -> np.ndarray:
    """What generate() makes of the logits: the processors in its order (generation/utils.py)."""
    found = theirs.LogitsProcessorList()
    eos = torch.tensor(sorted(stops))
    if rules.repetition_penalty != 1.0:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(rules.repetition_penalty))
    if rules.no_repeat_ngram_size:
        found.append(theirs.NoRepeatNGramLogitsProcessor(rules.no_repeat_ngram_size))
    if rules.bad_words_ids:
        found.append(theirs.NoBadWordsLogitsProcessor([list(word) for word in rules.bad_words_ids]))
    if rules.min_length and stops:
        found.append(theirs.MinLengthLogitsProcessor(rules.min_length, eos))
    if rules.min_tokens and stops:
        found.append(theirs.MinNewTokensLengthLogitsProcessor(len(prompt), rules.min_tokens, eos))
    if rules.suppress_tokens:
        found.append(theirs.SuppressTokensLogitsProcessor(list(rules.suppress_tokens)))
    if rules.begin_suppress_tokens:
        found.append(theirs.SuppressTokensAtBeginLogitsProcessor(list(rules.begin_suppress_tokens), len(prompt)))
    ids = torch.tensor([[*prompt, *answer]])
    return found(ids, torch.from_numpy(logits[None].copy()))[0].numpy()


@settings(max_examples=400)
@given(RULES, LOGITS, PROMPTS, ANSWERS, st.sets(TOKENS, max_size=2))
def test_rules_do_what_transformers_does(rules, logits, prompt, answer, stops):
    expected = of_transformers(rules, logits, prompt, answer, stops)
    if np.isneginf(expected).all():
        with pytest.raises(InputError, match="every token is forbidden"):
            ours(rules, logits, prompt, answer, stops)
        return
    np.testing.assert_allclose(ours(rules, logits, prompt, answer, stops), expected, rtol=1e-6)


@settings(max_examples=200)
@given(
    LOGITS, PROMPTS, ANSWERS, st.floats(0.5, 2.0), st.floats(-2, 2), st.floats(-2, 2),
    st.dictionaries(TOKENS, st.floats(-100, 100), max_size=5),
)  # fmt: skip
def test_bias_and_penalties_follow_their_definitions(logits, prompt, answer, repetition, frequency, presence, bias):
    """A bias first, then repetition over prompt and answer, then frequency and presence over the answer (vLLM)."""
    expected = [float(x) for x in logits]
    counts = Counter(answer)
    for token in range(VOCABULARY):
        expected[token] += bias.get(token, 0.0)
        if token in prompt or token in answer:
            expected[token] *= 1 / repetition if expected[token] >= 0 else repetition
        expected[token] -= frequency * counts[token] + presence * (counts[token] > 0)
    rules = LogitRules(repetition, frequency, presence, tuple(bias.items()))
    np.testing.assert_allclose(ours(rules, logits, prompt, answer), expected, rtol=1e-4, atol=1e-4)


def test_the_logits_given_stay_as_they_are():
    logits = np.arange(VOCABULARY, dtype=np.float32)
    ours(LogitRules(2.0, 1.0, 1.0, ((3, 5.0),), suppress_tokens=(1,)), logits, [1, 2], [3])
    assert np.array_equal(logits, np.arange(VOCABULARY))


def kept(logits: np.ndarray, **asked) -> np.ndarray:
    """Probability of every token, by counting 3000 draws at evenly spaced random numbers."""
    sampler = Sampler(SamplingSettings(**asked))

    class Even:
        def __init__(self) -> None:
            self.number = -0.5

        def random(self) -> float:
            self.number += 1
            return self.number / 3000

    sampler._random = Even()
    return np.bincount([sampler.next(logits) for _ in range(3000)], minlength=logits.size) / 3000


@settings(max_examples=25)
@given(
    LOGITS, st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]), st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 3, 50]), st.sampled_from([1.0, 0.6]),
)  # fmt: skip
def test_warpers_keep_what_transformers_keeps(logits, min_p, temperature, top_k, top_p):
    logits = np.round(logits + np.linspace(0, 0.5, VOCABULARY, dtype=np.float32), 3)  # ties fall as they like
    warpers = theirs.LogitsProcessorList([theirs.TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(theirs.TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(theirs.TopPLogitsWarper(top_p))
    warpers.append(theirs.MinPLogitsWarper(min_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits[None].astype(np.float64)))
    expected = torch.softmax(expected, -1)[0].numpy()
    found = kept(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-5])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([1.0, 3.0, 2.9, -np.inf], np.float32)
    assert {Sampler(SamplingSettings(temperature, seed=i)).next(logits) for i in range(20)} == {1}


def test_a_forbidden_token_is_never_drawn_even_when_the_draw_rounds_up():
    class Largest:
        def random(self) -> float:
            return 1.0

    sampler = Sampler(SamplingSettings(1.0))
    sampler._random = Largest()
    assert sampler.next(np.array([0.0, 1.0, -np.inf, -np.inf], np.float32)) == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("repetition_penalty", [0.0, -1.0, 1e30, float("nan"), 10**400]),
        ("frequency_penalty", [-2.1, 2.1, float("nan"), float("inf")]),
        ("presence_penalty", [-2.1, 2.1, float("nan"), 10**400]),
        ("logit_bias", [((1, 101.0),), ((1, float("nan")),), ((1, 10**400),)]),
        ("min_tokens", [-1, 2**31]),
        ("min_length", [-1]),
        ("no_repeat_ngram_size", [-1]),
    ],
)
def test_values_out_of_range_are_named(name, values):
    for value in values:
        with pytest.raises(InputError, match=name.replace("_", "-")):
            LogitRules(**{name: value})
    with pytest.raises(InputError, match="min-p"):
        SamplingSettings(min_p=float("nan"))


def test_what_is_asked_for_replaces_the_defaults():
    rules = LogitRules(repetition_penalty=1.3, min_length=9, suppress_tokens=(1,))
    assert rules.with_asked(repetition_penalty=None, min_tokens=None) == rules
    asked = rules.with_asked(repetition_penalty=1.0, min_tokens=0)
    assert asked == LogitRules(suppress_tokens=(1,)) != NEUTRAL
