"""Starts the HTTP server and stops it cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from export.contract.errors import InputError
from runtime_py.serving.models.registry import Registry
from runtime_py.serving.operating.logs import Log
from runtime_py.serving.protocol import limited_protocol
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell

_HEADER_BYTES = 32768
_BACKLOG = 1024
_CLOSE_SECONDS = 3  # for connections, once all is answered or cut off


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, bound before the model is loaded. Raises InputError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be 0 to 65535, not {port}")
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)  # with SO_REUSEADDR two can bind, but only one can listen
    except (OSError, TypeError, UnicodeError) as error:  # TypeError: a name that IDNA cannot write
        found.close()
        raise InputError(f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error})") from None
    return found


class _Draining(uvicorn.Server):
    """uvicorn's server with our way out: the first signal begins it, a second one ends the process at once."""

    def __init__(self, config: uvicorn.Config, shell: Shell, models: Registry, log: Log, seconds: float) -> None:
        super().__init__(config)
        self._drain, self._models, self._log, self._seconds = shell.drain, models, log, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signals. uvicorn's own would end the process with the signal, though all went well."""
        if self._drain.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._drain.begin()
        notify("STOPPING=1")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._drain.draining and not self.should_exit and self._drain.done(self._seconds):
            cut = self._drain.running
            left = f"{cut} answers were cut off after {self._seconds:g} s" if cut else "all answers were finished"
            self._log.say("stop", f"ending: {left}", cut=cut)
            self.should_exit = True
            if cut:
                self._models.close()  # streams that still run hear of it
        return await super().on_tick(counter)


def notify(state: str) -> None:
    """Tell systemd, where it started this process with Type=notify (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def serve(
    shell: Shell,
    models: Registry,
    listening: socket.socket,
    settings: ServeSettings,
    log: Log,
    ready: Callable[[], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM; then those in progress end, new ones get 503 (operating/drain.py)."""
    config = uvicorn.Config(
        shell.application(),  # type: ignore[arg-type]
        http=limited_protocol(settings.read_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        limit_concurrency=settings.connections,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        server_header=False,
    )
    log.take_over()
    running = _Draining(config, shell, models, log, settings.drain_seconds)
    for one in (signal.SIGINT, signal.SIGTERM):  # before anybody hears that the server is there
        signal.signal(one, running.handle_exit)
    ready()
    notify("READY=1")
    try:
        running.run(sockets=[listening])
    finally:
        models.close()
