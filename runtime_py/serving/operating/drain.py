"""The way out: requests that run are answered to their end, new ones hear where to go (503), then the process ends."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from runtime_py.serving.requests.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
RETRY_SECONDS = 5  # when another server, or this one started anew, is likely to answer
OBSERVED = ("/healthz", "/metrics")  # answered to the end: who watches the server wants to know


class Drain:
    """Counts the requests that are being answered. Signals touch it, too: they run in the event loop's thread."""

    def __init__(self) -> None:
        self.running = 0
        self._since: float | None = None

    @property
    def draining(self) -> bool:
        """Whether no new request is taken any more."""
        return self._since is not None

    def begin(self) -> None:
        """Take no new requests from now on."""
        self._since = time.monotonic() if self._since is None else self._since

    def done(self, seconds: float) -> bool:
        """Whether all is answered, or so many seconds have passed since begin()."""
        return self._since is not None and (not self.running or time.monotonic() - self._since >= seconds)

    def around(self, app: App) -> App:
        """The application, which refuses new requests once the server drains."""

        async def counted(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in OBSERVED:
                await app(scope, receive, send)
                return
            if self.draining:
                await _refuse(send)
                return
            self.running += 1
            try:
                await app(scope, receive, send)
            finally:
                self.running -= 1

        return counted


async def _refuse(send: Send) -> None:
    error = ApiError(503, "this server is shutting down; ask another one, or later", code="draining")
    data = json.dumps(error.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"retry-after", str(RETRY_SECONDS).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": data})
