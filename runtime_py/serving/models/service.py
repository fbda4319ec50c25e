"""What a loaded model is to the server, whatever it makes: texts, vectors or scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request, Mapping[str, Any]], Awaitable[Response]]  # of a request whose body is an object


class Service(Protocol):
    """A loaded model."""

    name: str

    def handlers(self) -> Mapping[str, Handler]:
        """By path; a handler raises ApiError where the model cannot do what is asked."""

    def details(self) -> Mapping[str, Any]:
        """What the list of models says beside the name."""

    @property
    def adapters(self) -> Sequence[str]:
        """Each is a model of its own to clients, NAME:ADAPTER."""

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""

    def guesses(self) -> tuple[int, int]:
        """(tokens guessed ahead, those of them that were right) so far."""

    def alive(self) -> bool:
        """Whether requests are still worked on."""

    def most_bytes(self) -> int:
        """Most memory it takes: weights (mapped ones, too), buffers, and caches that are full."""

    def close(self) -> None:
        """Stop working; what runs or waits fails."""
