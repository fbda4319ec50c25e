"""ASGI middleware in front of the app: who may ask, how much, and how slowly. Whole bodies only reach the app."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request

from runtime_py.serving.origins import check_page
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.settings import ServeSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
_OPEN = frozenset({"/", "/healthz", "/metrics"})  # need no key; everything else does, whatever it is called
_DISCARDED = 16 << 20  # bytes beyond the limit that are read and dropped: who is still sending hears no answer


class Guard:
    """Checks key, body size and body speed, then calls the app with the body in one piece."""

    def __init__(self, app: App, settings: ServeSettings) -> None:
        self._app, self._settings, self._origins = app, settings, settings.origins()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection's request. Everything that is not HTTP (lifespan) passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["tenant"] = self._check_key(scope)
            body = await asyncio.wait_for(self._read(scope, receive), self._settings.read_seconds)
        except TimeoutError:
            await _refuse(send, ApiError(408, f"the body took longer than {self._settings.read_seconds:g} s"))
            return
        except ApiError as error:
            await _refuse(send, error)
            return
        except ConnectionResetError:
            return
        delivered = False

        async def replay() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_key(self, scope: Message) -> int:
        """The number of the key that was sent; 0 where none is asked for, and no page from elsewhere asks."""
        keys = self._settings.keys()
        if scope["path"] in _OPEN:
            return 0
        if not keys:
            check_page(scope, self._origins)
            return 0
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        found = [hmac.compare_digest(given, b"Bearer " + key.encode()) for key in keys]  # all of them: constant time
        if not any(found):
            raise ApiError(401, "this server needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        return found.index(True)

    async def _read(self, scope: Message, receive: Receive) -> bytes:
        limit = self._settings.max_body
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared[:20]) > limit + _DISCARDED:
            raise ApiError(413, f"the body is larger than {limit} bytes")
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            if size <= limit:
                body += part
            elif size > limit + _DISCARDED:
                break
        if size > limit:
            raise ApiError(413, f"the body is larger than {limit} bytes")
        return bytes(body)


def tenant_of(request: Request) -> int:
    """Whose request it is: the number of its API key."""
    return int(getattr(request.state, "tenant", 0))


async def _refuse(send: Send, error: ApiError) -> None:
    data = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers.append((b"connection", b"close"))  # what is left of the body is not worth reading
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
