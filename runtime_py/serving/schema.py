"""The OpenAI API's requests, checked field by field. Whatever is wrong becomes an ApiError that names the field.

Fields that would change the answer and are not supported are refused, not ignored; unknown ones are ignored, because
clients send many that change nothing (user, metadata, store).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_py.sampling import SamplingSettings

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_MESSAGES = 4096
_MAX_STOPS, _STOP_LENGTH = 8, 256
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values of unsupported fields that change nothing
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """An answer with an HTTP status and the API's error object."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object that clients expect."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Options:
    """What completions and chat completions have in common."""

    sampling: SamplingSettings
    max_tokens: int | None  # None: as many as fit
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool  # in a stream's last chunk
    top_logprobs: int | None


def options(body: Mapping[str, Any], model: str, chat: bool, default_max_tokens: int | None) -> Options:
    """The common fields. Raises ApiError naming the first field that is wrong."""
    asked = _value(body, "model", str, model)
    if asked != model:
        raise ApiError(
            404, f"the model {asked[:100]!r} is not here; this server has {model!r}", "model", "model_not_found"
        )
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise ApiError(400, f"{name} is not supported by this server", name, "unsupported")
    stream = _value(body, "stream", bool, False)
    stream_options = _value(body, "stream_options", dict, {})
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    max_tokens = next((n for n in (_integer(body, name, None, 1, 2**31) for name in names) if n), default_max_tokens)
    seed = _integer(body, "seed", None, -(2**63), 2**63 - 1)
    sampling = SamplingSettings(
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_k=_integer(body, "top_k", 0, 0, 2**31) or 0,
        top_p=_number(body, "top_p", 1.0, 1e-9, 1.0),
        seed=secrets.randbits(31) if seed is None else abs(seed),
    )
    return Options(
        sampling=sampling,
        max_tokens=max_tokens,
        stop=_stop(body.get("stop")),
        stream=stream,
        include_usage=stream and _value(stream_options, "include_usage", bool, False),
        top_logprobs=_logprobs(body, chat),
    )


def messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation of a chat request. Raises ApiError when it is missing or malformed."""
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise ApiError(400, "messages must be a list of at least one message", "messages")
    if len(found) > _MAX_MESSAGES:
        raise ApiError(400, f"messages has {len(found)} entries; at most {_MAX_MESSAGES} are accepted", "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(found)]


def prompt(body: Mapping[str, Any]) -> str | list[int]:
    """The prompt of a completion: a text, or token ids. Raises ApiError."""
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _text(value, "prompt")
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    if isinstance(value, list) and len(value) > 1:
        raise ApiError(400, "one prompt a request: send several requests, they share the model", "prompt")
    raise ApiError(400, "prompt must be a text or a list of token ids", "prompt")


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if not all(isinstance(part, str) for part in parts):
            raise ApiError(400, f"{where}.content has parts that are not text", f"{where}.content")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a text", f"{where}.content")
    return {"role": _ROLES[role], "content": _text(content, f"{where}.content")}


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where} holds half of a surrogate pair, which is not a character", where) from None
    return value


def _stop(value: Any) -> tuple[str, ...]:
    found: Sequence[Any] = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(s, str) and 0 < len(s) <= _STOP_LENGTH for s in found):
        raise ApiError(400, f"stop must be a text or a list of texts of 1 to {_STOP_LENGTH} characters", "stop")
    if len(found) > _MAX_STOPS:
        raise ApiError(400, f"stop has {len(found)} entries; at most {_MAX_STOPS} are accepted", "stop")
    return tuple(found)


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _integer(body, "logprobs", None, 0, 20)
    wanted, top = _value(body, "logprobs", bool, False), _integer(body, "top_logprobs", None, 0, 20)
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None


def _value(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        names = {str: "a text", bool: "true or false", dict: "an object"}
        raise ApiError(400, f"{name} must be {names[kind]}", name)
    return value


def _integer(body: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise ApiError(400, f"{name} must be a whole number from {low} to {high}", name)
    return value


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise ApiError(400, f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)
