"""Speculation without loss for the answers of one model: several tokens a step where a guess promises to be right.

A step computes a text's next token and the tokens guessed behind it (Runner.advance), each to the bit as plain decoding
would. What is drawn from the first tells whether the first guessed token was right, and so on: an answer takes over
tokens as long as they are its own, and the others are taken out of its cache. So tokens, texts and probabilities are
those of plain decoding with the same seed, whatever is guessed; sampling, penalties and grammars need no rule of their
own. (The rejection rule of arXiv 2211.17192 keeps a distribution; this keeps every token.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from export.contract.errors import InputError
from runtime_py.reference.stepping import Stepped
from runtime_py.speculation.acceptance import Acceptance
from runtime_py.speculation.costs import StepCosts
from runtime_py.speculation.lengths import best_lengths
from runtime_py.speculation.lookup import Lookup
from runtime_py.speculation.proposer import Guess, Proposer

OFF, AUTO = "off", "auto"
MOST_GUESSED = 15  # tokens behind the one that a text gives anyway


@dataclass
class Counts:
    """What happened so far."""

    steps: int = 0  # with at least one guessed token
    guessed: int = 0  # tokens that were computed as guesses
    accepted: int = 0  # of those, how many became part of an answer


class Stepping(Protocol):
    """Of a Runner (load.py), what is needed here."""

    @property
    def most_together(self) -> int: ...

    def new_state(self) -> Any: ...

    def advance(self, states: Sequence[Any], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]: ...


def checked(asked: str) -> str:
    """`off`, `auto` or a number of tokens. Raises InputError for anything else."""
    if asked in (OFF, AUTO) or (asked.isascii() and asked.isdigit() and 1 <= int(asked[:3]) <= MOST_GUESSED):
        return asked
    raise InputError(f"--speculate must be off, auto or 1 to {MOST_GUESSED}, not {asked[:100]!r}")


class Guesser:
    """The guesses for one answer."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer, self._acceptance = proposer, Acceptance()
        self._guess = Guess((), 0)

    def look(self, tokens: Sequence[int], most: int) -> list[float]:
        """Guess up to `most` tokens behind these; the chance of each that it and all before it are right."""
        self._guess = self._proposer.propose(tokens, most)
        return self._acceptance.expect(self._guess)

    def guessed(self, count: int) -> list[int]:
        """The first tokens of the guess at hand."""
        return list(self._guess.tokens[:count])

    def note(self, token: int) -> None:
        """The answer goes on with this token."""
        self._acceptance.note(token)


class Speculation:
    """What the answers of one runner share. One thread at a time."""

    def __init__(self, runner: Stepping, asked: str = AUTO, proposer: Callable[[], Proposer] = Lookup) -> None:
        """asked: see checked(). proposer: makes the guesses of one text.

        A runner that computes the tokens of a text one by one (recurrent states, razored codes, the interpreter) never
        gets a guess. Raises InputError.
        """
        self._runner, self._proposer = runner, proposer
        self._fixed = int(checked(asked)) if asked not in (OFF, AUTO) else None
        self.on = asked != OFF and runner.most_together > 1
        self.costs, self.counts = StepCosts(), Counts()

    def guesser(self) -> Guesser | None:
        """For one answer; None where nothing is guessed."""
        return Guesser(self._proposer()) if self.on else None

    def lengths(self, chances: Sequence[Sequence[float]]) -> list[int]:
        """How many guessed tokens each of some texts computes in their next step."""
        most = self._runner.most_together
        if not self.on or not chances or len(chances) >= most:
            return [0] * len(chances)
        if self._fixed is None:
            return best_lengths(chances, self.costs, most)
        each = most // len(chances) - 1
        return [min(self._fixed, each, len(chance)) for chance in chances]

    def advance(self, states: Sequence[Any], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        """Runner.advance, timed."""
        start = time.perf_counter()
        found = self._runner.advance(states, runs)
        tokens = sum(map(len, runs))
        if tokens <= self._runner.most_together:
            self.costs.note(tokens, time.perf_counter() - start)
        guessed = tokens - len(runs)
        self.counts.steps += guessed > 0
        self.counts.guessed += guessed
        return found
