"""The conversation of a chat request and the variables of its template, checked key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional, text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MAX_CALLS = 128  # of a message
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
    return _named_results([_message(message, f"messages[{i}]", ignore_unknown) for i, message in enumerate(found)])


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
    calls = _calls(message, role, where)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise ApiError(400, f"{where}.tool_call_id must be the id of a call", f"{where}.tool_call_id")
    content = message.get("content")
    content = "" if content is None and calls else content
    if isinstance(content, list):
        parts = [_part(part, f"{where}.content[{i}]", ignore_unknown) for i, part in enumerate(content)]
        content = "".join(parts)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a text", f"{where}.content")
    found: dict[str, Any] = {"role": _ROLES[role], "content": text(content, f"{where}.content")}
    if calls:
        found["tool_calls"] = calls
    if message.get("tool_call_id") is not None and role != "tool":
        raise ApiError(400, f"{where}.tool_call_id is for the role tool", f"{where}.tool_call_id")
    for name in ("name", "reasoning_content", "tool_call_id"):
        if message.get(name) is not None:
            found[name] = text(optional(message, name, str, "", f"{where}."), f"{where}.{name}")
    unknown = {name: value for name, value in message.items() if not fields.MESSAGE.knows(name)}
    _plain(unknown, where)
    return {**found, **unknown}


def _calls(message: Mapping[str, Any], role: str, where: str) -> list[dict[str, Any]]:
    """The calls of an assistant's message: arguments as objects, which is how chat templates expect them."""
    where = f"{where}.tool_calls"
    given = message.get("tool_calls")
    if given is None or given == []:
        return []
    if role != "assistant" or not isinstance(given, list) or len(given) > _MAX_CALLS:
        raise ApiError(400, f"{where} must be a list of at most {_MAX_CALLS} calls of the role assistant", where)
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(given)]


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict) or call.get("type", "function") != "function":
        raise ApiError(400, f"{where} must be an object of type function", where)
    fields.check(call, fields.CALL, False, f"{where}.")
    function = call.get("function")
    if not isinstance(function, dict):
        raise ApiError(400, f"{where}.function must be an object with name and arguments", f"{where}.function")
    fields.check(function, fields.CALLED, False, f"{where}.function.")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not isinstance(call.get("id"), str):
        raise ApiError(400, f"{where} must have an id and a function with a name, both texts", where)
    where = f"{where}.function.arguments"
    try:
        arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where} must be a text that is an object of JSON", where)
    _plain(arguments, where)
    function = {"name": text(name, where), "arguments": arguments}
    return {"id": text(call["id"], where), "type": "function", "function": function}


def _named_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the function's name in each result, which some chat templates need and clients do not send."""
    names: dict[str, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message["tool_call_id"] in names:
            message.setdefault("name", names[message["tool_call_id"]])
    return messages


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
