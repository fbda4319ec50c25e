"""What is made before a request is submitted: its prompt's ids and its grammar, in threads that few share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from export.contract.errors import InputError
from runtime_py.serving.generating.answering import Answering, Plan
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.structured.compiler import Compiled
from runtime_py.text.tokenizing import TooLong

T = TypeVar("T")
_WRITERS = 2  # prompts that are rendered and tokenized at a time


@dataclass(frozen=True)
class Where:
    """The field of a request that a prompt is made of, and the variables of its template."""

    name: str
    variables: tuple[str, ...] = ()

    def of(self, message: str) -> str:
        """The field that an error's message begins with."""
        refused = next((name for name in self.variables if message.startswith(f"{name}: ")), None)
        return self.name if refused is None else f"chat_template_kwargs.{refused[:100]}"


class Preparation:
    """Of one model's requests."""

    def __init__(self, answering: Answering, folder: Path, context: int, seconds: float) -> None:
        """folder: of the model, whose names clients do not see. context: tokens. seconds: most for one prompt."""
        self._answering, self._folder, self._context, self._seconds = answering, folder, context, seconds
        self._writers = ThreadPoolExecutor(_WRITERS, "athena-prompts")
        self._grammars = ThreadPoolExecutor(1, "athena-grammars")  # apart: one that takes long holds no prompt up

    def close(self) -> None:
        """What has not begun never will."""
        self._writers.shutdown(wait=False, cancel_futures=True)
        self._grammars.shutdown(wait=False, cancel_futures=True)

    async def prompt(self, make: Callable[[], list[int]], gone: asyncio.Future[None], where: Where) -> list[int] | None:
        """The prompt's ids; None when the client went away. Few prompts are made at a time, the others wait."""
        try:
            return await self._before_gone(self._writers, make, gone)
        except TooLong as error:
            message = f"{error}; the model's context is {self._context}"
            raise ApiError(400, message, where.name, "context_length_exceeded") from None
        except InputError as error:
            raise ApiError(400, self._told(error), where.of(str(error))) from None

    async def grammar(self, plan: Plan, end: str, gone: asyncio.Future[None]) -> Compiled | None:
        """The compiled grammar; None when the client went away. end: of the prompt."""
        try:
            return await self._before_gone(self._grammars, partial(self._answering.compiled, plan, end), gone)
        except InputError as error:
            asked = plan.form.where if plan.form else "tools"
            field = str(error).split(":")[0].split(" ")[0]  # a part of what was asked for, in most messages
            raise ApiError(400, self._told(error), field if field.startswith(("tools", asked)) else asked) from None

    async def _before_gone(
        self, threads: ThreadPoolExecutor, work_to_do: Callable[[], T], gone: asyncio.Future[None]
    ) -> T | None:
        """What the work gives in one of the threads; None when the client goes away first. Raises what it raises."""
        work = asyncio.get_running_loop().run_in_executor(threads, work_to_do)
        try:
            waiting: set[asyncio.Future[Any]] = {gone, work}
            await asyncio.wait(waiting, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return None
            if not work.done():
                raise ApiError(504, "the time limit passed before the prompt was read", code="timeout")
            return work.result()
        finally:
            work.cancel()  # what did not begin never will
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _told(self, error: Exception) -> str:
        return for_clients(str(error), self._folder)
