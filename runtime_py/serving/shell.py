"""What every server has around its own routes: the model list, health, metrics, and errors in the API's form."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime_py.serving.guard import App, Guard
from runtime_py.serving.metrics import Metrics
from runtime_py.serving.requests.adapters import adapter_model, asked_model
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.settings import ServeSettings

_PATHS = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"})
_MAX_CONTAINERS = 200_000  # of a request, and of the texts in it


class Shell:
    """One served model; `alive` says whether requests are still worked on, `load` how many run and wait.

    details: what its entry in the list of models says beside its name. adapters: of the model, each with an entry of
    its own.
    """

    def __init__(
        self,
        model: str,
        settings: ServeSettings,
        alive: Callable[[], bool],
        load: Callable[[], tuple[int, int]],
        details: Mapping[str, Any] | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.model, self._settings, self._alive, self._details = model, settings, alive, dict(details or {})
        self._adapters = adapters
        self._created = int(time.time())
        self.metrics = Metrics(load)

    def application(self, routes: Sequence[Route]) -> App:
        """The ASGI application of these routes and the common ones."""
        common = [
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
        ]
        handlers: Any = {ApiError: self._on_api_error, HTTPException: self._on_http_error, Exception: self._on_fault}
        application = Starlette(routes=[*routes, *common], exception_handlers=handlers)
        guarded: App = Guard(application, self._settings)  # type: ignore[arg-type]
        return _open_to(self._settings.origins(), guarded)

    def count(self, request: Request, response: Response) -> Response:
        """Note the response in the metrics."""
        path = request.url.path if request.url.path in _PATHS else "other"
        self.metrics.requests.labels(path, response.status_code).inc()
        return response

    async def _models(self, request: Request) -> Response:
        return self.count(
            request, JSONResponse({"object": "list", "data": [self._entry(name) for name in ("", *self._adapters)]})
        )

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        _, adapter = asked_model({"model": name}, self.model, self._adapters)
        return self.count(request, JSONResponse(self._entry(adapter)))

    def _entry(self, adapter: str) -> dict[str, Any]:
        name = adapter_model(self.model, adapter)
        entry = {"id": name, "object": "model", "created": self._created, "owned_by": "athena-export"}
        return entry | ({"parent": self.model} if adapter else {}) | self._details

    async def _health(self, request: Request) -> Response:
        alive = self._alive()
        return JSONResponse({"status": "ok" if alive else "the scheduler has ended"}, 200 if alive else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _on_api_error(self, request: Request, error: ApiError) -> Response:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        return self.count(request, JSONResponse(error.body(), error.status, headers))

    async def _on_http_error(self, request: Request, error: HTTPException) -> Response:
        body = ApiError(error.status_code, str(error.detail)).body()
        return self.count(request, JSONResponse(body, error.status_code, error.headers))

    async def _on_fault(self, request: Request, error: Exception) -> Response:
        return self.count(request, JSONResponse(ApiError(500, f"internal error: {type(error).__name__}").body(), 500))


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
        expose_headers=["Retry-After"],
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
