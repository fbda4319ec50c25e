"""Recurrent states of a generation, and copies of them at earlier places of its text.

Keys and values are cut back by forgetting the last of them. A recurrent state is of one place only: to go back, a copy
from there or from before is taken up, and what lies between is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EVERY = 256  # tokens at least between copies that are kept for good
_RECENT = 4  # other copies that are kept: where the last prompts ended
MOST_BYTES = 1 << 28  # of all copies of one generation; the newest is always there


@dataclass
class Recurrent:
    """States behind `length` tokens."""

    arrays: list[np.ndarray]  # zeros at the start
    length: int = 0
    _kept: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def keep(self) -> None:
        """Copy the states, so that cut() can come back to this place."""
        if not self.arrays:
            return
        self._kept[self.length] = self.saved()
        others, last = [], 0
        for length in self._kept:  # which grow: cut() drops what lies beyond
            if length - last >= EVERY:
                last = length
            else:
                others.append(length)
        for length in others[:-_RECENT]:
            del self._kept[length]
        self._thin_out()

    def _thin_out(self) -> None:
        """Drop copies until they fit: first those whose neighbours are nearest, then the oldest of the recent ones."""
        size = sum(array.nbytes for array in self.arrays)
        while len(self._kept) > 1 and len(self._kept) * size > MOST_BYTES:
            places = [0, *self._kept]
            far = range(1, len(places) - _RECENT)
            place = min(far, key=lambda i: places[i + 1] - places[i - 1], default=1)
            del self._kept[places[place]]

    def saved(self) -> list[np.ndarray]:
        """Copies of the states as they are."""
        return [array.copy() for array in self.arrays]

    def copies(self) -> dict[int, list[np.ndarray]]:
        """The copies that are kept, by the tokens they stand behind."""
        return dict(self._kept)

    def forget(self, length: int) -> None:
        """The states are those behind `length` tokens again; copies from beyond are of no use."""
        self.length = length
        self._kept = {place: arrays for place, arrays in self._kept.items() if place <= length}

    def bytes(self) -> int:
        return sum(array.nbytes for arrays in (self.arrays, *self._kept.values()) for array in arrays)

    def cut(self, length: int) -> int:
        """Go back to `length` tokens or fewer, and say how many that are: the most there is a copy for."""
        if not self.arrays:
            self.length = length
        elif length != self.length:
            self.forget(length)
            self.length = max(self._kept, default=0)
            for i, array in enumerate(self.arrays):
                array[...] = self._kept[self.length][i] if self.length else 0
        return self.length

    def check(self, length: int) -> None:
        """Raises RuntimeError where the states are not those behind `length` tokens."""
        if self.arrays and self.length != length:
            raise RuntimeError(f"states of {self.length} tokens cannot go on behind {length}: rewind() cuts them back")
