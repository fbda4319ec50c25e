"""A guess from the text itself: where its last tokens stood before, it may go on as it did there.

Prompt and answer are indexed by pairs of tokens, each with the place where the pair stood last, as LZ77 does it. The
guess goes on behind the place whose tokens before it agree longest with the end of the text; the nearest of equals. As
long as it is right nothing is searched. Behind a wrong token the text often goes on as before: an edit replaced a word.
So places soon behind the broken guess count as longer, and without any pair that stood before, the guess is that each
wrong token was replaced by one.

Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding), with the longest match of a suffix as
in SAM decoding (arXiv 2411.10666).
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.speculation.proposer import Guess

REPLACED = 0  # what speaks for a guess behind a replaced token
SHORTEST, LONGEST = 2, 32  # tokens that agree
_CANDIDATES = 16  # places that are compared, the nearest ones
_NEAR, _BONUS = 24, 4  # tokens behind a broken guess within which a place counts as so much longer
_NOWHERE = -1


class Lookup:
    """Guesses of one text. Memory: about 200 bytes a token."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}  # where a pair ended last
        self._before: list[int] = []  # for each token: where the pair that it ends stood before
        self._place, self._matched = _NOWHERE, 0  # of the token that the running guess has next
        self._broken = _NOWHERE  # the place behind the token of the last guess that was wrong

    def propose(self, tokens: Sequence[int], most: int) -> Guess:
        """Up to `most` tokens behind these; none where nothing like their end stood before."""
        self._read(tokens)
        if self._place == _NOWHERE:
            self._search(tokens)
        place = self._place
        if place == _NOWHERE or most < 1:
            return Guess((), 0)
        period = len(tokens) - place  # behind the end of the text, it repeats what it has
        found = list(tokens[place : place + most])
        while len(found) < most:
            found += found[len(found) - period : len(found) - period + most - len(found)]
        return Guess(found, self._matched)

    def _read(self, tokens: Sequence[int]) -> None:
        last, before = self._last, self._before
        for i in range(len(before), len(tokens)):
            if self._place != _NOWHERE:
                if tokens[self._place] == tokens[i]:
                    self._matched += 1
                    self._place += 1
                else:
                    self._broken, self._place = self._place + 1, _NOWHERE
            pair = (tokens[i - 1], tokens[i]) if i else (_NOWHERE, tokens[i])
            before.append(last.get(pair, _NOWHERE))
            last[pair] = i

    def _search(self, tokens: Sequence[int]) -> None:
        end, best = len(tokens) - 1, 0
        at, broken = self._before[end] if tokens else _NOWHERE, self._broken
        for _ in range(_CANDIDATES):
            if at == _NOWHERE:
                break
            same = SHORTEST
            while same < LONGEST and same <= at and tokens[at - same] == tokens[end - same]:
                same += 1
            worth = same + (_BONUS if broken <= at + 1 < broken + _NEAR and broken != _NOWHERE else 0)
            if worth > best:
                best, self._place, self._matched = worth, at + 1, worth
            if same == LONGEST:
                break
            at = self._before[at]
        if not best and broken != _NOWHERE and broken < len(tokens):
            self._place, self._matched = broken, REPLACED
