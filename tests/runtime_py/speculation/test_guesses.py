"""Guesses, what they are expected to bring, and how long they are made."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from export.contract.errors import InputError
from runtime_py.speculation.acceptance import Acceptance
from runtime_py.speculation.costs import StepCosts
from runtime_py.speculation.lengths import best_lengths
from runtime_py.speculation.lookup import LONGEST, SHORTEST, Lookup
from runtime_py.speculation.proposer import Guess
from runtime_py.speculation.speculation import MOST_GUESSED, Speculation, checked

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def agreeing(text, place):
    """Tokens before `place` that agree with the end of the text."""
    same = 0
    while same < min(place, LONGEST) and text[place - 1 - same] == text[len(text) - 1 - same]:
        same += 1
    return same


@given(TEXTS, st.integers(1, 20))
@example([1, 2], 5)
def test_a_fresh_guess_stands_behind_the_longest_match(text, most):
    found = Lookup().propose(text, most)
    longest = max((agreeing(text, place) for place in range(1, len(text))), default=0)
    if longest < SHORTEST:
        assert not found.tokens
        return
    assert len(found.tokens) == most
    continued = [*text, *found.tokens]
    places = [p for p in range(1, len(text)) if all(continued[p + i] == t for i, t in enumerate(found.tokens))]
    assert max(agreeing(text, place) for place in places) == found.matched >= SHORTEST
    assert found.matched <= longest  # of many places only the nearest are compared


@given(st.lists(st.integers(0, 50), min_size=6, max_size=40, unique=True), st.data())
def test_a_repeated_text_is_guessed_to_its_end_and_on(text, data):
    lookup, known = Lookup(), data.draw(st.integers(SHORTEST, len(text)))
    for end in range(len(text) + known, 3 * len(text)):
        found = lookup.propose(list(itertools.islice(itertools.cycle(text), end)), 7)
        assert list(found.tokens) == [text[(end + i) % len(text)] for i in range(7)]


def test_behind_a_replaced_token_the_text_goes_on():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 90, 1, 2, 3]
    lookup = Lookup()
    assert list(lookup.propose(text, 3).tokens) == [4, 5, 6]
    text.append(55)
    found = lookup.propose(text, 3)
    assert (list(found.tokens), found.matched) == ([5, 6, 7], 0)
    text.append(66)
    assert list(lookup.propose(text, 3).tokens) == [6, 7, 8]


@given(st.lists(st.tuples(TEXTS.filter(bool), st.integers(0, 9)), min_size=1, max_size=8))
def test_no_text_breaks_it(pieces):
    lookup, text = Lookup(), []
    for piece, most in pieces:
        text += piece
        found = lookup.propose(text, most)
        assert len(found.tokens) in (0, most) and set(found.tokens) <= set(text)


@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 2), max_size=16)), max_size=30))
def test_chances_decrease_and_are_learned(guesses):
    acceptance = Acceptance()
    for matched, tokens in guesses:
        found = acceptance.expect(Guess(tokens, matched))
        assert len(found) == len(tokens)
        assert all(0 <= later <= before <= 1 for before, later in itertools.pairwise([1.0, *found]))
        for token in tokens:
            acceptance.note(token if token else 1)
    for _ in range(200):
        acceptance.expect(Guess([5], 2))
        acceptance.note(5)
        acceptance.expect(Guess([5], 10))
        acceptance.note(6)
    assert acceptance.expect(Guess([5], 2))[0] > 0.9 and acceptance.expect(Guess([5], 10))[0] < 0.1


CHANCES = st.lists(
    st.lists(st.floats(0, 1), max_size=6).map(lambda chances: sorted(chances, reverse=True)), min_size=1, max_size=3
)


@given(CHANCES, st.integers(1, 10))
def test_lengths_are_the_best_of_all(chances, most):
    costs = StepCosts()
    found = best_lengths(chances, costs, most)

    def worth(lengths):
        expected = len(chances) + sum(sum(chance[:n]) for chance, n in zip(chances, lengths))
        return expected / costs.of(len(chances) + sum(lengths))

    every = itertools.product(*(range(len(chance) + 1) for chance in chances))
    best = max(worth(lengths) for lengths in every if not any(lengths) or len(chances) + sum(lengths) <= most)
    plain = worth([0] * len(chances))
    assert worth(found) == pytest.approx(best) if any(found) else best <= 1.03 * plain * (1 + 1e-9)
    assert not any(found) or len(chances) + sum(found) <= most


def test_costs_are_measured_and_forgotten():
    costs = StepCosts()
    ratios = [costs.of(n) / costs.of(1) for n in range(1, 20)]
    assert ratios == sorted(ratios)
    costs.note(1, 0.5)
    assert costs.of(1) == 0.5 and costs.of(4) == pytest.approx(0.5 * ratios[3])
    costs.note(4, 100.0)  # a disturbed one
    assert costs.of(4) == pytest.approx(0.6 * ratios[3]) and costs.of(1) == 0.5
    for _ in range(40):
        costs.note(4, 0.6)
    assert costs.of(4) == pytest.approx(0.6, rel=1e-3) and costs.of(1) == 0.5
    for _ in range(600):
        costs.note(1, 0.5)
    assert costs.of(4) == pytest.approx(0.5 * ratios[3])


@pytest.mark.parametrize("asked", ["", "on", "0", "16", "-1", "1.5", "٣", "9" * 5000, "auto "])
def test_what_nobody_can_ask_for(asked):
    with pytest.raises(InputError, match="--speculate"):
        checked(asked)


class Counting:
    most_together = 16

    def new_state(self):
        return None

    def advance(self, states, runs):
        return [[] for _ in runs]


def test_a_fixed_number_shares_the_step():
    speculation = Speculation(Counting(), "9")
    chances = [0.1] * MOST_GUESSED
    assert speculation.lengths([chances]) == [9]
    assert speculation.lengths([chances, chances, []]) == [4, 4, 0]
    assert speculation.lengths([chances] * 16) == [0] * 16
    assert speculation.lengths([]) == Speculation(Counting()).lengths([]) == []
    assert Speculation(Counting(), "off").lengths([chances]) == [0]
    assert Speculation(Counting(), "off").guesser() is None
