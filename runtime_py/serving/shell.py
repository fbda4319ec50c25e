"""The server around its models: who is asked, the list of models, health, metrics, logs, errors in the API's form."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime_py.serving.guard import App, Guard, Message, Receive, Send
from runtime_py.serving.models.registry import Model, Registry
from runtime_py.serving.operating.drain import Drain
from runtime_py.serving.operating.logs import Log
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.requests.adapters import adapter_model, asked_model
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional
from runtime_py.serving.settings import ServeSettings

# By what clients send; what llama-server, vLLM, Jina and Cohere call reranking is one route.
POSTED = {
    "/v1/completions": "/v1/completions",
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/responses": "/v1/responses",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/v1/reranking": "/v1/rerank",
    "/rerank": "/v1/rerank",
}
_PATHS = frozenset({"/v1/models", "/healthz", "/metrics", *POSTED})
_MAX_CONTAINERS = 200_000  # of a request, and of the texts in it
Page = Callable[[Request], Any]


class Shell:
    """The application over a registry of models."""

    def __init__(
        self,
        models: Registry,
        settings: ServeSettings,
        metrics: Metrics,
        log: Log | None = None,
        page: Page | None = None,
    ) -> None:
        """page: what answers at /, None for nothing."""
        self._models, self._settings, self._metrics, self._page = models, settings, metrics, page
        self._log, self.drain = log or Log(), Drain()
        self._created = int(time.time())
        metrics.watch(models.states, models.limit, lambda: self.drain.draining)

    def application(self) -> App:
        """The ASGI application."""
        routes = [
            *(Route(path, _Posted(self, known), methods=["POST"]) for path, known in POSTED.items()),
            Route("/v1/models", self._list),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/healthz", self._health),
            Route("/metrics", self._show_metrics),
            *([Route("/", self._page)] if self._page else []),
        ]
        handlers: Any = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_fault}
        application = Starlette(routes=routes, exception_handlers=handlers)
        guarded: App = Guard(application, self._settings)  # type: ignore[arg-type]
        return _open_to(self._settings.origins(), self._observed(self.drain.around(guarded)))

    async def answer(self, known: str, request: Request, send: Send) -> None:
        """Answer a request to a route of POSTED with the model that it names."""
        body = json_object(await request.body())
        model = self._models.resolve(optional(body, "model", str, None))
        request.state.notes["model"] = model.name
        gone = asyncio.ensure_future(disconnected(request) if model.service is None or model.leaving else _never())
        try:
            async with self._models.held(model, gone, self._settings.seconds) as service:
                gone.cancel()
                response = Response(status_code=499)  # nobody reads it
                if service is not None:
                    response = await service.handlers()[known](request, body)
                await response(request.scope, request.receive, send)
        finally:
            gone.cancel()

    def _observed(self, app: App) -> App:
        """The application with an id for every request, its line in the log and its place in the metrics."""

        async def observed(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start = time.perf_counter()
            notes: dict[str, Any] = {"id": f"req_{secrets.token_hex(8)}", "status": 0}
            scope.setdefault("state", {}).update(notes=notes, arrived=start)

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    notes["status"] = message["status"]
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", notes["id"].encode())]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                path = scope["path"] if scope["path"] in _PATHS else "other"
                self._metrics.requests.labels(path, notes["status"]).inc()
                told = {"method": scope["method"], "path": scope["path"][:200], **notes}
                self._log.request({**told, "seconds": round(time.perf_counter() - start, 6)})

        return observed

    async def _list(self, request: Request) -> Response:
        models = [self._models.resolve(name) for name in self._models.names()]
        entries = [self._entry(model, adapter) for model in models for adapter in ("", *model.adapters)]
        return JSONResponse({"object": "list", "data": entries})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        model = self._models.resolve(name)
        return JSONResponse(self._entry(model, asked_model({"model": name}, model.name, model.adapters)[1]))

    def _entry(self, model: Model, adapter: str) -> dict[str, Any]:
        name = adapter_model(model.name, adapter)
        entry = {"id": name, "object": "model", "created": self._created, "owned_by": "athena-export"}
        return entry | ({"parent": model.name} if adapter else {}) | self._models.details(model)

    async def _health(self, request: Request) -> Response:
        if self.drain.draining:
            return JSONResponse({"status": "draining"}, 503)
        alive = self._models.alive()
        return JSONResponse({"status": "ok" if alive else "the scheduler has ended"}, 200 if alive else 503)

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")


class _Posted:
    """A route as an application of its own: the model is held until the last byte of the answer is sent."""

    def __init__(self, shell: Shell, known: str) -> None:
        self._shell, self._known = shell, known

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._shell.answer(self._known, Request(scope, receive), send)


async def _never() -> None:
    await asyncio.Event().wait()


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.body(), error.status, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = ApiError(error.status_code, str(error.detail)).body()
    return JSONResponse(body, error.status_code, error.headers)


async def _on_fault(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"internal error: {type(error).__name__}").body(), 500)


def _open_to(origins: Sequence[str], app: App) -> App:
    """The application for scripts of pages from these origins, too.

    Outermost: a browser's preflight request carries no key, and refusals need the headers as much as answers do. Keys
    are sent in a header of the script's own, so no credentials of the browser are allowed.
    """
    if not origins:
        return app
    return CORSMiddleware(  # type: ignore[return-value]
        app,  # type: ignore[arg-type]
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After", "X-Request-Id"],
    )


async def disconnected(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_object(body: bytes) -> Mapping[str, Any]:
    """The body as a JSON object. Raises ApiError."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS:  # nobody is answered while they are made
        raise ApiError(400, f"the body has more than {_MAX_CONTAINERS:,} brackets of lists and objects")
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({type(error).__name__}: {error})"[:300]) from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object")
    return data
