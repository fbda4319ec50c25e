"""When the tokens of a request came, as they come."""

from __future__ import annotations

import time

from runtime_py.serving.operating.metrics import ModelMetrics


class Clock:
    """Of one request with all its choices; token() is called by the thread that makes them."""

    def __init__(self, metrics: ModelMetrics, arrived: float) -> None:
        """arrived: on time.perf_counter()."""
        self._metrics, self._arrived = metrics, arrived
        self._last: dict[int, float] = {}  # by choice
        self.first: float | None = None  # seconds from the arrival to the first token of any

    def token(self, choice: int) -> None:
        """A choice has a new token."""
        now = time.perf_counter()
        if self.first is None:
            self.first = now - self._arrived
            self._metrics.first_token.observe(self.first)
        if choice in self._last:
            self._metrics.between_tokens.observe(now - self._last[choice])
        self._last[choice] = now
