"""The conversation of a chat request and the variables of its template, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional, text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_MESSAGES = 4096
_DEPTH = 32  # of objects and lists in what a chat template gets


def messages(body: Mapping[str, Any], ignore_unknown: bool = False) -> list[dict[str, Any]]:
    """The conversation of a chat request. Raises ApiError when it is missing or malformed.

    With ignore_unknown, unknown keys of a message reach the template as transformers hands them on.
    """
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise ApiError(400, "messages must be a list of at least one message", "messages")
    if len(found) > _MAX_MESSAGES:
        raise ApiError(400, f"messages has {len(found)} entries; at most {_MAX_MESSAGES} are accepted", "messages")
    return [_message(message, f"messages[{i}]", ignore_unknown) for i, message in enumerate(found)]


def template_variables(body: Mapping[str, Any]) -> dict[str, Any]:
    """chat_template_kwargs: what the chat template may read beside the messages. Raises ApiError."""
    found: dict[str, Any] = optional(body, "chat_template_kwargs", dict, {})
    _plain(found, "chat_template_kwargs")
    return found


def _message(message: Any, where: str, ignore_unknown: bool) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    fields.check(message, fields.MESSAGE, ignore_unknown, f"{where}.")
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part, f"{where}.content[{i}]", ignore_unknown) for i, part in enumerate(content)]
        content = "".join(parts)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a text", f"{where}.content")
    found: dict[str, Any] = {"role": _ROLES[role], "content": text(content, f"{where}.content")}
    for name in ("name", "reasoning_content"):
        if message.get(name) is not None:
            found[name] = text(optional(message, name, str, "", f"{where}."), f"{where}.{name}")
    unknown = {name: value for name, value in message.items() if not fields.MESSAGE.knows(name)}
    _plain(unknown, where)
    return {**found, **unknown}


def _part(part: Any, where: str, ignore_unknown: bool) -> str:
    if not isinstance(part, dict):
        raise ApiError(400, f"{where} must be an object with type and text", where)
    if part.get("type") != "text":
        raise ApiError(400, f"{where}.type must be text: this server reads nothing else", f"{where}.type")
    fields.check(part, fields.PART, ignore_unknown, f"{where}.")
    if not isinstance(part.get("text"), str):
        raise ApiError(400, f"{where}.text must be a text", f"{where}.text")
    return str(part["text"])


def _plain(value: Any, where: str, depth: int = _DEPTH) -> None:
    """Raises ApiError where JSON from a client is too deep or holds text that is none."""
    if isinstance(value, str):
        text(value, where)
    elif isinstance(value, dict | list) and depth == 0:
        raise ApiError(400, f"{where} nests deeper than {_DEPTH}", where)
    elif isinstance(value, dict):
        for name, item in value.items():
            text(name, where)
            _plain(item, where, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _plain(item, where, depth - 1)
