"""A word before something is compiled, which would otherwise look stuck."""

from __future__ import annotations

from collections.abc import Callable

_waiting: list[Callable[[], None]] = []


def at_first_compilation(tell: Callable[[], None]) -> None:
    """Have `tell` called once, before the first thing that this process has to compile."""
    _waiting.append(tell)


def announce() -> None:
    """Something is about to be compiled."""
    while _waiting:
        _waiting.pop()()
