"""What may come next in a text, by whoever guesses: a look-up in the text itself, or another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next. matched: how much speaks for the first of them; grows by one with every right one."""

    tokens: Sequence[int]
    matched: int


class Proposer(Protocol):
    """Guesses how one text goes on. A guess costs time where it is wrong, and never changes the text."""

    def propose(self, tokens: Sequence[int], most: int) -> Guess:
        """Up to `most` tokens behind these, which are prompt and answer so far and only grow from call to call."""
