"""The models of a server: loaded on demand within a limit of memory; the least recently used ones leave for others.

A request holds its model until its answer is complete, and a held model never leaves. Where a model has to leave, its
new requests wait with those of the others, so it runs dry; the model that was waited for longest is loaded next, for
all who want it. So no model starves, and a switch is paid once for everyone who waits for it. Everything here belongs
to one event loop, but opening and closing, which have a thread of their own.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from runtime_py.serving.models.service import Service
from runtime_py.serving.operating.logs import Log
from runtime_py.serving.operating.metrics import Metrics, ModelState
from runtime_py.serving.requests.adapters import adapter_model
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.system.memory import give_back

_RETRY_SECONDS = 5  # for a model that could not be loaded
_MOST_SHOWN = 20  # names in an error


@dataclass(eq=False)
class Model:
    """A model of the server, loaded or not. memory: the most it takes, known once it was open."""

    name: str
    folder: Path
    open: Callable[[], Service]
    service: Service | None = None
    memory: int = 0
    holders: int = 0  # requests that are being answered
    leaving: bool = False  # new requests wait
    used: float = 0.0  # when the last request ended, or it was loaded
    shown: Mapping[str, Any] = field(default_factory=dict)  # in the list of models, once it was open
    adapters: Sequence[str] = ()  # of it, once it was open
    waiting: deque[asyncio.Future[Service]] = field(default_factory=deque)

    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return any(not one.done() for one in self.waiting)


class Registry:
    """All models of a server."""

    def __init__(
        self, models: Sequence[Model], metrics: Metrics, log: Log, limit: int | None = None, queue: int = 68
    ) -> None:
        """limit: bytes that loaded models may take together, None for any; queue: requests that may wait for one."""
        self._models = {model.name: model for model in models}
        self._metrics, self._log, self.limit, self._queue = metrics, log, limit, queue
        self._wanted: deque[Model] = deque()  # those that requests wait for, the first to be loaded first
        self._keeper: asyncio.Task[None] | None = None
        self._freed = asyncio.Event()  # some model is held by nobody any more, or nobody waits any more
        self._thread = ThreadPoolExecutor(1, "athena-models")
        self._closed = False

    @classmethod
    def of(cls, service: Service, metrics: Metrics) -> Registry:
        """One model that is loaded."""
        model = Model(
            service.name, Path(), lambda: service, service, shown=dict(service.details()), adapters=service.adapters
        )
        return cls([model], metrics, Log())

    def open_all(self) -> None:
        """Open every model once, so that none that is broken or too large is found out later; as many stay as fit.

        Raises InputError.
        """
        for model in self._models.values():
            self._load(model)
            if self.limit is not None and self._taken() > self.limit:
                self._unload(model, self._taken_out(model))

    def names(self) -> list[str]:
        """Of all models, in the order they were given."""
        return list(self._models)

    def chats(self) -> bool:
        """Whether some model generates text, which only those do that have a sampling to recommend."""
        return any("recommended_sampling" in model.shown for model in self._models.values())

    def resolve(self, name: str | None) -> Model:
        """The model of this name; the only one for None. Raises ApiError: 404, or 400 where a name is needed."""
        if name is None:
            if len(self._models) == 1:
                return next(iter(self._models.values()))
            raise ApiError(400, f"model is needed: this server has {self._shown()}", "model")
        found = self._models.get(name) or self._adapted(name)
        if found is None:
            message = f"the model {name[:100]!r} is not here; this server has {self._shown()}"
            raise ApiError(404, message, "model", "model_not_found")
        return found

    def _adapted(self, name: str) -> Model | None:
        """The model with an adapter that is called MODEL:NAME, or NAME alone where only one has such a one."""
        found = [one for one in self._models.values() if any(adapter_model(one.name, a) == name for a in one.adapters)]
        found = found or [one for one in self._models.values() if name in one.adapters]
        return found[0] if len(found) == 1 else None

    def _shown(self) -> str:
        models = self._models.values()
        names = [repr(adapter_model(one.name, adapter)) for one in models for adapter in ("", *one.adapters)]
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        return ", ".join(names[:_MOST_SHOWN]) + more

    @asynccontextmanager
    async def held(self, model: Model, gone: asyncio.Future[None], seconds: float) -> AsyncIterator[Service | None]:
        """The loaded model for the length of a request; None when the client went away before.

        gone: done when it does; seconds: how long to wait. Raises ApiError.
        """
        service = model.service
        if service is not None and not model.leaving:
            model.holders += 1
        else:
            service = await self._awaited(model, gone, seconds)
            if service is None:
                yield None
                return
        try:
            yield service
        finally:
            self._release(model)

    def _release(self, model: Model) -> None:
        model.holders -= 1
        model.used = time.monotonic()
        if self.limit is not None and model.service is not None:
            model.memory = model.service.most_bytes()  # caches may have turned out to need wider numbers
        if not model.holders:
            self._freed.set()

    async def _awaited(self, model: Model, gone: asyncio.Future[None], seconds: float) -> Service | None:
        """The model once it is loaded, and held for the caller; None when the client goes away first."""
        if self._closed:
            raise ApiError(503, "this server is shutting down", code="draining", retry_after=_RETRY_SECONDS)
        if sum(len(one.waiting) for one in self._models.values()) >= self._queue:
            raise ApiError(429, "too many requests wait for a model", code="queue_full", retry_after=_RETRY_SECONDS)
        mine: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        model.waiting.append(mine)
        if model not in self._wanted:
            self._wanted.append(model)
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.ensure_future(self._keep())
        handed = False
        both: set[asyncio.Future[Any]] = {gone, mine}
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return None
            if not mine.done():
                raise ApiError(504, "the time limit passed before the model was loaded", code="timeout")
            service = mine.result()
            handed = True
            return service
        finally:
            if mine in model.waiting:
                model.waiting.remove(mine)
            if not handed and mine.done() and not mine.cancelled() and mine.exception() is None:
                self._release(model)  # it was held for a client that has just left
            mine.cancel()
            self._freed.set()

    async def _keep(self) -> None:
        """Load what is waited for, one model after the other."""
        while self._wanted:
            model = self._wanted[0]
            try:
                if await self._there(model):
                    for one in model.waiting:
                        if not one.done():
                            model.holders += 1
                            one.set_result(model.service)  # type: ignore[arg-type]
            except Exception as error:
                self._refuse(model, error)
            model.waiting.clear()
            self._wanted.popleft()

    async def _there(self, model: Model) -> bool:
        """Have the model loaded; False when nobody waits for it any more. Raises what opening it raises."""
        loop = asyncio.get_running_loop()
        while self.limit is not None and model.service is None and self._taken() + model.memory > self.limit:
            if not model.wanted():
                self._stay()
                return False
            victim = self._victim(model.memory)
            if victim is None:
                self._freed.clear()
                await self._freed.wait()
                continue
            self._metrics.evictions.labels(victim.name).inc()
            await loop.run_in_executor(self._thread, self._unload, victim, self._taken_out(victim))
        if model.service is None:
            await loop.run_in_executor(self._thread, self._load, model)
        self._stay()
        if self.limit is not None and self._taken() > self.limit:  # another folder has come to its place
            await loop.run_in_executor(self._thread, self._unload, model, self._taken_out(model))
            raise InputError(f"it has grown to {_size(model.memory)}, which do not fit --memory beside what runs")
        return True

    def _victim(self, needed: int) -> Model | None:
        """A model that can leave at once; where there is none, those that will have to are told to run dry."""
        loaded = sorted((m for m in self._models.values() if m.service is not None), key=lambda m: m.used)
        idle = next((one for one in loaded if not one.holders), None)
        free = (self.limit or 0) - self._taken()
        for one in loaded if idle is None else ():
            if free >= needed:
                break
            one.leaving = True
            free += one.memory
        return idle

    def _stay(self) -> None:
        """Nobody has to leave any more."""
        for one in self._models.values():
            one.leaving = False

    def _refuse(self, model: Model, error: Exception) -> None:
        """Tell those who wait that the model cannot be had."""
        self._log.say("model", f"{model.name} cannot be loaded: {error}", "error", model=model.name)
        reason = for_clients(str(error), model.folder) if isinstance(error, InputError) else type(error).__name__
        for one in model.waiting:
            if not one.done():
                message = f"the model {model.name!r} cannot be loaded now ({reason})"
                one.set_exception(ApiError(503, message, "model", "model_unavailable", _RETRY_SECONDS))

    def _taken(self) -> int:
        return sum(model.memory for model in self._models.values() if model.service is not None)

    def _load(self, model: Model) -> None:
        start = time.perf_counter()
        service = model.open()
        model.memory = service.most_bytes()
        if self.limit is not None and model.memory > self.limit:
            service.close()
            raise InputError(
                f"{model.name} takes up to {_size(model.memory)} (weights, buffers, full caches), --memory allows "
                f"{_size(self.limit)}; fewer --sessions or a smaller --max-context make it less"
            )
        model.service, model.shown, seconds = service, dict(service.details()), time.perf_counter() - start
        model.adapters = service.adapters
        model.leaving, model.used = False, time.monotonic()
        self._metrics.loads.labels(model.name).inc()
        self._metrics.load_seconds.labels(model.name).observe(seconds)
        if len(self._models) > 1:
            message = f"{model.name} is loaded: up to {_size(model.memory)}, {seconds:.1f} s"
            self._log.say("model", message, model=model.name, memory=model.memory, seconds=round(seconds, 3))

    def _taken_out(self, model: Model) -> list[Service]:
        """The model's service, for _unload() alone: nobody can hold it from this moment, while a thread closes it."""
        found = [model.service] if model.service is not None else []
        model.service = None
        return found

    def _unload(self, model: Model, services: list[Service]) -> None:
        """services: emptied, so that their memory is free at the end."""
        while services:
            services.pop().close()
        gc.collect()
        give_back()
        self._log.say("model", f"{model.name} leaves", model=model.name)

    def states(self) -> dict[str, ModelState]:
        """Of every model now."""
        found = {}
        for name, model in self._models.items():
            running, waiting = model.service.load() if model.service is not None else (0, 0)
            guesses = model.service.guesses() if model.service is not None else (0, 0)
            waiting += len(model.waiting)
            found[name] = ModelState(model.service is not None, running, waiting, model.memory, *guesses)
        return found

    def details(self, model: Model) -> dict[str, Any]:
        """What the list of models says of one beside its name."""
        return {**model.shown, "loaded": model.service is not None}

    def alive(self) -> bool:
        """Whether every loaded model still works."""
        return all(model.service.alive() for model in self._models.values() if model.service is not None)

    def close(self) -> None:
        """Stop working; what runs or waits fails."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for model in self._models.values():
            if model.service is not None:
                model.service.close()
                model.service = None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
