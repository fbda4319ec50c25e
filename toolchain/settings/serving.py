"""What `serve` and `bench` are asked for; the runtime's settings take these as they are, and check them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from toolchain.settings.execution import SPECULATE
from toolchain.settings.option import option


@dataclass(frozen=True)
class ServeOptions:
    """What one server accepts, by the names of runtime_py.serving.settings.ServeSettings."""

    PANEL: ClassVar[str] = "Limits"

    sessions: int = option(4, "Requests computed at the same time", common=True)
    queue: int = option(64, "Requests that may wait; more get 429", common=True)
    max_tokens: int = option(4096, "Most tokens of an answer", common=True)
    max_body: int = option(4 << 20, "Most bytes of a request")
    seconds: float = option(600.0, "Seconds a request may take, waiting included", flag="--timeout", common=True)
    read_seconds: float = option(
        15.0, "Seconds a client has to send headers, and again the body", flag="--read-timeout"
    )
    connections: int = option(512, "Most open connections")
    reuse_answers: bool = option(
        False, "Also reuse the cache of generated tokens: the next turn starts sooner, near ties may differ"
    )
    share_prefixes: bool = option(True, "Requests with the same key use each other's caches, which cached_tokens tells")
    speculate: str = option("auto", SPECULATE, metavar="number")
    api_key: tuple[str, ...] = option(
        (), "Key that clients must send, one of them; may be repeated", envvar="ATHENA_API_KEY", common=True
    )
    page: bool = option(True, "A chat page at /")
    ignore_unknown: bool = option(
        False, "Drop request fields that are not known instead of refusing them", negative=False
    )
    allow_origins: tuple[str, ...] = option(
        (), "Origin of web pages that may call the server, *: every one; may be repeated", flag="--allow-origin"
    )
    memory: str = option(
        "", "Memory that all models together may take, caches included, such as 6GB",
        unset="what is free for several models, any for one", metavar="size", common=True,
    )  # fmt: skip
    max_context: Optional[int] = option(
        None, "Most tokens of prompt and answer together", unset="as many as the model takes", common=True
    )
    drain_seconds: float = option(
        30.0, "Seconds that running answers have to end after SIGTERM; new requests get 503", flag="--drain-timeout"
    )
    log_format: str = option("text", "Lines on stderr; json: one object a line, requests too", choices=("text", "json"))


@dataclass(frozen=True)
class BenchOptions:
    """What is measured."""

    PANEL: ClassVar[str] = "Measured"

    prompt_lengths: tuple[int, ...] = option((128, 512), "Tokens of the prefills, comma separated", common=True)
    depths: tuple[int, ...] = option((64, 2048), "Cached tokens before decode, comma separated", common=True)
    tokens: int = option(32, "Tokens decoded per round", common=True)
    rounds: int = option(5, "Rounds; medians are reported", common=True)


LIMITS, MEASURED = ServeOptions(), BenchOptions()
