"""Requests that are computed one at a time, texts in groups, while the others wait: a queue, a time limit, clients that
leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from export.contract.errors import InputError, NotFiniteError
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import disconnected
from runtime_py.serving.turns import Turns

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Together(Generic[P, T]):
    """The work of one request: read(i) reads its text i, groups() says which are computed together, compute() does."""

    count: int
    read: Callable[[int], P]
    groups: Callable[[list[P]], list[list[int]]]
    compute: Callable[[list[P]], list[T]]


@dataclass(frozen=True)
class _Watch:
    """The client of a request, and when its time is over."""

    gone: asyncio.Future[None]
    deadline: float


class _Gone(Exception):
    """The client went away."""


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

    async def results(self, request: Request, field: str, work: Together[P, T]) -> list[T] | None:
        """What each of a request's texts gives, in order; None when the client went away.

        field: of the request, whose item of the same number a text is. Raises ApiError.
        """
        if self._waiting > self._settings.queue:
            wait = min(max(round(self._typical * self._waiting), 1), 60)
            raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after=wait)
        self._waiting += 1
        gone = asyncio.ensure_future(disconnected(request))
        left = self._settings.seconds - (time.perf_counter() - request.state.arrived)
        try:
            return await self._computed(field, work, _Watch(gone, time.monotonic() + left))
        except _Gone:
            return None
        finally:
            gone.cancel()
            self._waiting -= 1

    async def _computed(self, field: str, work: Together[P, T], watch: _Watch) -> list[T]:
        started = time.monotonic()
        read = [await self._step(field, number, partial(work.read, number), watch) for number in range(work.count)]
        found: dict[int, T] = {}
        for group in work.groups(read):
            try:
                made = await self._awaited(partial(work.compute, [read[number] for number in group]), watch)
            except (InputError, NotFiniteError):  # one of them: alone each shows whether it is that one
                made = [
                    (await self._step(field, number, partial(work.compute, [read[number]]), watch))[0]
                    for number in group
                ]
            found |= zip(group, made)
        self._typical += 0.1 * (time.monotonic() - started - self._typical)
        return [found[number] for number in range(work.count)]

    async def _step(self, field: str, number: int, piece: Callable[[], R], watch: _Watch) -> R:
        """A piece of work about one text."""
        try:
            return await self._awaited(piece, watch)
        except InputError as error:
            told = for_clients(str(error), self._folder)
            raise ApiError(400, f"{field} {number}: {told}", field) from None
        except NotFiniteError as error:
            raise ApiError(500, f"{field} {number}: {error}") from None

    async def _awaited(self, piece: Callable[[], R], watch: _Watch) -> R:
        running = asyncio.get_running_loop().run_in_executor(self._worker, self._in_turn, piece)
        left = max(watch.deadline - time.monotonic(), 0)
        waiting: set[asyncio.Future[Any]] = {watch.gone, running}
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if watch.gone.done():
            running.cancel()
            raise _Gone
        if not running.done():
            running.cancel()
            raise ApiError(504, "the time limit passed before the answer was complete", code="timeout")
        return running.result()

    def _in_turn(self, piece: Callable[[], R]) -> R:
        with self._turns:
            return piece()
