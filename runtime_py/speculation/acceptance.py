"""How likely the next token of a guess is right, learned from the text at hand.

Every token of an answer tells whether the guess at hand had it, also where the guess was not computed: so a text whose
guesses became good is noticed without a wrong step, and one whose guesses are bad costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.speculation.proposer import Guess

_STARTS = (0, 1, 3, 4, 6, 9, 16, 32)  # of `matched`, where classes begin
_PRIOR = (0.4, 0.3, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)  # assumed before anything was seen, for each class
_WEIGHT = 6.0  # tokens that the prior counts for
_FORGET = 0.97  # what a class keeps of earlier tokens with each new one


def _kind(matched: int) -> int:
    return sum(matched >= start for start in _STARTS) - 1


_KINDS = tuple(_kind(matched) for matched in range(_STARTS[-1] + 1))


class Acceptance:
    """Of the guesses for one text."""

    def __init__(self) -> None:
        self._right = [_WEIGHT * rate for rate in _PRIOR]
        self._seen = [_WEIGHT] * len(_PRIOR)
        self._guess: Sequence[int] = ()
        self._matched, self._next = 0, 0

    def expect(self, guess: Guess) -> list[float]:
        """For each token of a guess, which is now the one at hand, the probability that it and all before it are right.

        It decreases along the guess.
        """
        self._guess, self._matched, self._next = guess.tokens, guess.matched, 0
        found, chance, matched, last = [], 1.0, guess.matched, len(_KINDS) - 1
        for _ in guess.tokens:
            kind = _KINDS[min(matched, last)]
            chance *= self._right[kind] / self._seen[kind]
            found.append(chance)
            matched += 1
        return found

    def note(self, token: int) -> None:
        """The text goes on with this token."""
        if self._next >= len(self._guess):
            return
        right = self._guess[self._next] == token
        kind = _KINDS[min(self._matched + self._next, len(_KINDS) - 1)]
        self._right[kind] = _FORGET * self._right[kind] + right
        self._seen[kind] = _FORGET * self._seen[kind] + 1.0
        self._next = self._next + 1 if right else len(self._guess)
