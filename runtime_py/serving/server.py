"""Starts the HTTP server and stops it cleanly."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from export.contract.errors import InputError
from runtime_py.serving.app import Server
from runtime_py.serving.embeddings import EmbeddingServer
from runtime_py.serving.protocol import limited_protocol
from runtime_py.serving.rerank import RerankServer
from runtime_py.serving.settings import ServeSettings

_HEADER_BYTES = 32768
_BACKLOG = 1024


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def serve(
    server: Server | EmbeddingServer | RerankServer,
    listening: socket.socket,
    settings: ServeSettings,
    ready: Callable[[], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM; requests in progress get 5 seconds to end."""
    config = uvicorn.Config(
        server.application(),  # type: ignore[arg-type]
        http=limited_protocol(settings.read_seconds),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        limit_concurrency=settings.connections,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    running = uvicorn.Server(config)
    ready()
    try:
        running.run(sockets=[listening])
    finally:
        server.close()
