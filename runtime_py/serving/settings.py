"""Limits of the server. Every one of them protects the machine it runs on; the defaults suit a laptop."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import InputError


@dataclass(frozen=True)
class ServeSettings:
    """What one server accepts."""

    sessions: int = 4  # requests computed at the same time, each with its key-value cache
    queue: int = 64  # requests that wait; more are answered with 429
    max_tokens: int = 4096  # most tokens of an answer
    max_body: int = 4 << 20  # bytes of a request body
    seconds: float = 600.0  # from the arrival of a request to the end of its answer
    read_seconds: float = 15.0  # for the headers, and again for the body
    connections: int = 512  # open at the same time
    reuse_answers: bool = False  # use the cache of generated tokens, too (scheduler.py)
    api_key: str = ""  # empty: none is asked for

    def __post_init__(self) -> None:
        """Raises InputError naming the option that is out of range."""
        for name, low in (("sessions", 1), ("queue", 0), ("max_tokens", 1), ("max_body", 64), ("connections", 1)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')} must be {low} or more, not {getattr(self, name)}")
        if not (self.seconds > 0 and self.read_seconds > 0):
            raise InputError("--timeout must be above 0")
