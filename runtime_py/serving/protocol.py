"""uvicorn's HTTP protocol with limits that uvicorn itself does not have, on clients that are slow or petty.

Without them a client that sends one header byte a minute keeps its connection forever (slow loris), one that sends its
body in chunks of one byte keeps the server busy (parsing a chunk costs as much as parsing a thousand bytes), and one
that never reads keeps connection and answer in memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_SLICE = 16384  # bytes parsed at a time: the next look at the limits is never far
_FREE_PARTS, _BYTES_PER_PART = 4096, 64  # a body of n bytes may come in so many parts and one more for every 64 bytes


class _Counted(h11.Connection):
    """A connection that refuses a body of too many small parts."""

    _parts = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._parts = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._parts += 1
            self._bytes += len(event.data)
            if self._parts > _FREE_PARTS + self._bytes // _BYTES_PER_PART:
                raise h11.RemoteProtocolError("the body comes in too many small parts")
        return event


def limited_protocol(seconds: float) -> type[H11Protocol]:
    """H11Protocol that closes a connection whose request headers take longer than `seconds`, or whose client reads
    nothing for so long, and refuses bodies in tiny parts."""

    class Limited(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            most = self.config.h11_max_incomplete_event_size or _SLICE
            self.conn = _Counted(h11.SERVER, max_incomplete_event_size=most)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._read()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            for start in range(0, len(data), _SLICE):
                if self.transport.is_closing():
                    return
                super().data_received(data[start : start + _SLICE])
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()  # a request is being answered
            elif not self.transport.is_closing():
                self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._await_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read()
            if self.cycle is not None and self.cycle.response_complete:
                self._await_reader()  # nothing is added any more, and the rest has to go, too

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.get_write_buffer_size():
                self._await_reader()

        def _await_reader(self) -> None:
            if self._unread is None:
                self._unread = self.loop.call_later(seconds, self._abort_unread)

        def _read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _abort_unread(self) -> None:
            """Close at once: a graceful close would wait until the client reads what is left."""
            self._unread = None
            if self.transport.get_write_buffer_size():
                self.transport.abort()

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
