"""What steps of several tokens take: typical ratios to begin with, and what is measured as they come."""

from __future__ import annotations

import itertools

_TYPICAL = ((1, 1.0), (2, 1.2), (4, 1.7), (8, 3.0), (16, 5.3))  # beside one token: tests/benchmarks/together.py
_SHARE = 0.2  # of a new time in the running mean
_MOST = 2.0  # times the expected one; more is another process, or a kernel being compiled
_OLD = 512  # steps after which a time is no longer believed: a disturbed one would never be tried again


def _typical(tokens: int) -> float:
    for (low, one), (high, other) in itertools.pairwise(_TYPICAL):
        if tokens <= high:
            return one + (other - one) * (tokens - low) / (high - low)
    return _TYPICAL[-1][1] * tokens / _TYPICAL[-1][0]


class StepCosts:
    """Seconds of a step, by its tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # the number of steps when it was last measured
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        expected = self.of(tokens) if self._seconds else seconds
        self._steps += 1
        self._seconds[tokens] = expected + _SHARE * (min(seconds, _MOST * expected) - expected)
        self._seen[tokens] = self._steps

    def of(self, tokens: int) -> float:
        """Seconds, or before the first measurement times the step of one token; above 0."""
        known = [n for n, step in self._seen.items() if self._steps - step <= _OLD]
        if not known:
            return _typical(tokens)
        nearest = min(known, key=lambda n: abs(n - tokens))
        return max(self._seconds[nearest], 1e-9) * _typical(tokens) / _typical(nearest)
