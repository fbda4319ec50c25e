"""Limits of the server. Every one of them protects the machine it runs on; the defaults suit a laptop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from export.contract.errors import InputError
from runtime_py.serving.operating.logs import FORMATS
from runtime_py.speculation.speculation import AUTO, checked
from runtime_py.system.sizes import parsed_size

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class ServeSettings:
    """What one server accepts."""

    sessions: int = 4  # requests computed at the same time, each with its key-value cache
    queue: int = 64  # requests that wait; more are answered with 429
    max_tokens: int = 4096  # most tokens of an answer
    max_body: int = 4 << 20  # bytes of a request body
    seconds: float = 600.0  # from the arrival of a request to the end of its answer
    read_seconds: float = 15.0  # for the headers, and again for the body
    connections: int = 512  # open at the same time
    reuse_answers: bool = False  # use the cache of generated tokens, too (scheduler.py)
    share_prefixes: bool = True  # a request may use the cache that another one of the same key left
    api_key: str | tuple[str, ...] = ()  # one of these has to be sent; none: none is asked for
    page: bool = True  # a chat page at /
    ignore_unknown: bool = False  # drop request fields that nobody knows, instead of refusing them
    speculate: str = AUTO  # guessed tokens behind the next one (speculation.py)
    allow_origins: tuple[str, ...] = ()  # web pages whose scripts may call the server; "*": all
    memory: str = ""  # that all models may take together, such as 6GB; "": several get what is free, one gets any
    max_context: int | None = None  # most tokens of prompt and answer; None: as many as the model takes
    drain_seconds: float = 30.0  # for running answers, once the server is told to end
    log_format: str = "text"  # one of logs.FORMATS

    def __post_init__(self) -> None:
        """Raises InputError naming the option that is out of range."""
        for name, low in (("sessions", 1), ("queue", 0), ("max_tokens", 1), ("max_body", 64), ("connections", 1)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')} must be {low} or more, not {getattr(self, name)}")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in self.keys()):
            raise InputError("--api-key must be visible ASCII characters")
        if not (self.seconds > 0 and self.read_seconds > 0):
            raise InputError("--timeout must be above 0")
        if self.max_context is not None and self.max_context < 1:
            raise InputError(f"--max-context must be 1 or more, not {self.max_context}")
        if not 0 <= self.drain_seconds < math.inf:
            raise InputError(f"--drain-timeout must be 0 or more, not {self.drain_seconds:g}")
        if self.log_format not in FORMATS:
            raise InputError(f"--log-format {self.log_format!r} is unknown; choose one of {', '.join(FORMATS)}")
        checked(self.speculate)
        self.origins()
        self.memory_bytes()

    def memory_bytes(self) -> int | None:
        """memory in bytes; None where it is not given. Raises InputError where it is no size."""
        if not self.memory:
            return None
        return parsed_size(self.memory, "--memory")

    def keys(self) -> tuple[str, ...]:
        """The API keys."""
        given = (self.api_key,) if isinstance(self.api_key, str) else self.api_key
        return tuple(key for key in given if key)

    def origins(self) -> tuple[str, ...]:
        """allow_origins as browsers write them. Raises InputError for one that is none."""
        return tuple(_origin(text) for text in self.allow_origins)


def _origin(text: str) -> str:
    """An origin as browsers write it: lower case, and without its scheme's own port."""
    if text == "*":
        return text
    found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if found is None or int(found["port"] or 0) > 65535:
        raise InputError(
            "--allow-origin must be * or an origin such as https://example.org or http://localhost:3000, "
            f"with no path, not {text[:100]!r}"
        )
    scheme, host, port = found["scheme"], found["host"], int(found["port"] or 0)
    return f"{scheme}://{host}" + (f":{port}" if port and port != _PORTS.get(scheme) else "")
