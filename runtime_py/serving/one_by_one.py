"""Requests whose texts are computed one at a time, while the others wait: a queue, a time limit, clients that leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from export.contract.errors import InputError, NotFiniteError
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import disconnected
from runtime_py.serving.turns import Turns

T = TypeVar("T")


class OneByOne:
    """The only worker of a server, because the kernels have one pool of threads."""

    def __init__(self, folder: Path, settings: ServeSettings, turns: Turns) -> None:
        """turns: with other models of the server."""
        self._folder, self._settings, self._turns = folder, settings, turns
        self._worker = ThreadPoolExecutor(1, "athena-encoder")
        self._closed = threading.Event()
        self._waiting = 0  # requests, the running one included; touched by the event loop only
        self._typical = 0.1  # seconds a request took, a running mean

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return min(self._waiting, 1), max(self._waiting - 1, 0)

    def alive(self) -> bool:
        """Whether requests are still worked on."""
        return not self._closed.is_set()

    def close(self) -> None:
        """Stop after the current text."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def results(self, request: Request, field: str, work: Sequence[Callable[[], T]]) -> list[T] | None:
        """What each piece of work gives, in order; None when the client went away.

        field: of the request, whose item of the same number a piece is about. Raises ApiError.
        """
        if self._waiting > self._settings.queue:
            wait = min(max(round(self._typical * self._waiting), 1), 60)
            raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after=wait)
        self._waiting += 1
        try:
            return await self._computed(request, field, work)
        finally:
            self._waiting -= 1

    def _in_turn(self, piece: Callable[[], T]) -> T:
        with self._turns:
            return piece()

    async def _computed(self, request: Request, field: str, work: Sequence[Callable[[], T]]) -> list[T] | None:
        started = time.monotonic()
        deadline, gone = started + self._settings.seconds, asyncio.ensure_future(disconnected(request))
        found: list[T] = []
        loop = asyncio.get_running_loop()
        try:
            for number, piece in enumerate(work):
                running = loop.run_in_executor(self._worker, self._in_turn, piece)
                left = max(deadline - time.monotonic(), 0)
                waiting: set[asyncio.Future[Any]] = {gone, running}
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    running.cancel()
                    return None
                if not running.done():
                    running.cancel()
                    raise ApiError(504, "the time limit passed before the answer was complete", code="timeout")
                try:
                    found.append(running.result())
                except InputError as error:
                    told = for_clients(str(error), self._folder)
                    raise ApiError(400, f"{field} {number}: {told}", field) from None
                except NotFiniteError as error:
                    raise ApiError(500, f"{field} {number}: {error}") from None
        finally:
            gone.cancel()
        self._typical += 0.1 * (time.monotonic() - started - self._typical)
        return found
