"""uvicorn's HTTP protocol with a time limit for request headers, which uvicorn itself does not have.

Without it a client that sends one header byte a minute keeps its connection forever (slow loris).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def limited_protocol(seconds: float) -> type[H11Protocol]:
    """H11Protocol that closes a connection whose request headers take longer than `seconds`."""

    class Limited(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()  # a request is being answered
            elif not self.transport.is_closing():
                self._watch()

        def _watch(self) -> None:
            if self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self._expire)

        def _unwatch(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _expire(self) -> None:
            self._waiting = None
            if not self.transport.is_closing():
                self.transport.close()

    return Limited
