"""Requests of the Responses API as chats: items become messages, and fields their counterparts.

Nothing is stored between requests, so what refers to earlier ones is refused (previous_response_id, item_reference);
so are tools that OpenAI runs itself, background work and content that is not text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional, text

_MOST_ITEMS = 4096
_LOGPROBS = "message.output_text.logprobs"
_TEXTS = ("input_text", "output_text", "text")
_ROLES = ("user", "assistant", "system", "developer")
_SAME = (  # names and meanings are those of chats
    "model", "stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "min_tokens",
    "ignore_eos", "logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty", "parallel_tool_calls",
    "chat_template_kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request as a chat. places: what each message comes from, as errors name it."""

    chat: dict[str, Any]
    places: tuple[str, ...]

    def renamed(self, error: ApiError) -> ApiError:
        """The error of the chat, with the names that the client used."""
        param, message = error.param, error.message
        for number, place in enumerate(self.places):
            there = f"messages[{number}]"
            if param is not None and (param == there or param.startswith(f"{there}.")):
                return ApiError(error.status, message.replace(there, place), param.replace(there, place), error.code)
        for ours, theirs in _RENAMED.items():
            if param is not None and param.split(".")[0].split("[")[0] == ours:
                param, message = theirs + param.removeprefix(ours), message.replace(ours, theirs)
                break
        return ApiError(error.status, message, param, error.code, error.retry_after)


_RENAMED = {"messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens"}


def as_chat(body: Mapping[str, Any], ignore_unknown: bool) -> Asked:
    """The chat that a request stands for. Raises ApiError naming the field that is wrong, unknown or not there."""
    fields.check(body, fields.RESPONSES, ignore_unknown)
    found: dict[str, Any] = {name: body[name] for name in _SAME if name in body}
    instructions = optional(body, "instructions", str, None)
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise ApiError(400, "input must be a text or a list of at least one item", "input")
    if len(items) > _MOST_ITEMS:
        raise ApiError(400, f"input has {len(items)} items; at most {_MOST_ITEMS} are accepted", "input")
    messages = _Messages(ignore_unknown)
    if instructions:
        messages.add({"role": "system", "content": text(instructions, "instructions")}, "instructions")
    for number, item in enumerate(items):
        messages.item(item, f"input[{number}]")
    found["messages"] = messages.found
    found["max_completion_tokens"] = body.get("max_output_tokens")
    if body.get("tools") is not None:
        found["tools"] = _tools(body["tools"])
    if body.get("tool_choice") is not None:
        found["tool_choice"] = _choice(body["tool_choice"])
    found["response_format"] = _format(body)
    _only_null(optional(body, "reasoning", dict, {}), "reasoning")
    found |= _logprobs(body)
    options = optional(body, "stream_options", dict, {})
    fields.check(options, fields.RESPONSE_STREAM_OPTIONS, ignore_unknown, "stream_options.")
    return Asked({name: value for name, value in found.items() if value is not None}, tuple(messages.places))


class _Messages:
    """Messages as the items make them: calls and reasoning belong to the assistant's message around them."""

    def __init__(self, ignore_unknown: bool) -> None:
        self.found: list[dict[str, Any]] = []
        self.places: list[str] = []
        self._ignore, self._thought = ignore_unknown, ""

    def add(self, message: dict[str, Any], place: str) -> None:
        if message["role"] == "assistant" and self._thought:
            message["reasoning_content"], self._thought = self._thought, ""
        self.found.append(message)
        self.places.append(place)

    def item(self, item: Any, where: str) -> None:
        """The next one. Raises ApiError."""
        if not isinstance(item, dict):
            raise ApiError(400, f"{where} must be an object", where)
        kind = item.get("type", "message")
        reader = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._result,
            "reasoning": self._reasoning,
        }.get(kind if isinstance(kind, str) else "")
        if reader is None:
            known = "message, function_call, function_call_output or reasoning"
            raise ApiError(400, f"{where}.type must be {known}: this server has no others", f"{where}.type")
        reader(item, where)

    def _message(self, item: dict[str, Any], where: str) -> None:
        fields.check(item, fields.ITEM_MESSAGE, self._ignore, f"{where}.")
        if item.get("role") not in _ROLES:
            raise ApiError(400, f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
        content = self._texts(item.get("content"), f"{where}.content")
        self.add({"role": item["role"], "content": content}, where)

    def _texts(self, content: Any, where: str) -> str:
        if isinstance(content, str):
            return text(content, where)
        if not isinstance(content, list):
            raise ApiError(400, f"{where} must be a text or a list of texts", where)
        found = []
        for number, part in enumerate(content):
            place = f"{where}[{number}]"
            if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
                raise ApiError(
                    400, f"{place} must be of type input_text with a text: this server reads no other", place
                )
            fields.check(part, fields.ITEM_PART, self._ignore, f"{place}.")
            found.append(text(part["text"], place))
        return "".join(found)

    def _call(self, item: dict[str, Any], where: str) -> None:
        fields.check(item, fields.ITEM_CALL, self._ignore, f"{where}.")
        for name in ("call_id", "name", "arguments"):
            if not isinstance(item.get(name), str):
                raise ApiError(400, f"{where}.{name} must be a text", f"{where}.{name}")
        function = {"name": item["name"], "arguments": item["arguments"]}
        if not self.found or self.found[-1]["role"] != "assistant":
            self.add({"role": "assistant", "content": ""}, where)
        call = {"id": item["call_id"], "type": "function", "function": function}
        self.found[-1].setdefault("tool_calls", []).append(call)

    def _result(self, item: dict[str, Any], where: str) -> None:
        fields.check(item, fields.ITEM_RESULT, self._ignore, f"{where}.")
        if not isinstance(item.get("call_id"), str):
            raise ApiError(400, f"{where}.call_id must be the id of a call", f"{where}.call_id")
        content = self._texts(item.get("output"), f"{where}.output")
        self.add({"role": "tool", "tool_call_id": item["call_id"], "content": content}, where)

    def _reasoning(self, item: dict[str, Any], where: str) -> None:
        fields.check(item, fields.ITEM_REASONING, self._ignore, f"{where}.")
        for part in optional(item, "content", list, [], f"{where}."):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise ApiError(400, f"{where}.content must be a list of texts", f"{where}.content")
            self._thought += text(part["text"], f"{where}.content")


def _tools(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise ApiError(400, "tools must be a list of tools", "tools")
    found = []
    for number, tool in enumerate(given):
        where = f"tools[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise ApiError(400, f"{where}.type must be function: this server runs no tools itself", f"{where}.type")
        fields.check(tool, fields.RESPONSE_TOOL, False, f"{where}.")
        function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
        found.append({"type": "function", "function": function})
    return found


def _choice(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    fields.check(given, fields.RESPONSE_CHOICE, False, "tool_choice.")
    if given.get("type") == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    if given.get("type") == "allowed_tools":
        tools = given.get("tools")
        named = [_choice(one) for one in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode"), "tools": named}}
    raise ApiError(400, "tool_choice.type must be function or allowed_tools", "tool_choice.type")


def _format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """text.format as response_format."""
    asked = optional(body, "text", dict, {})
    fields.check(asked, fields.RESPONSE_TEXT, False, "text.")
    form = optional(asked, "format", dict, None, "text.")
    if form is None or form.get("type") != "json_schema":
        return form
    fields.check(form, fields.RESPONSE_SCHEMA, False, "text.format.")
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    include = body.get("include")
    if include is not None and (not isinstance(include, list) or any(one != _LOGPROBS for one in include)):
        raise ApiError(400, f"include may hold {_LOGPROBS} and nothing else here", "include", "unsupported")
    if not include:
        if body.get("top_logprobs"):
            raise ApiError(400, f"top_logprobs needs include: [{_LOGPROBS!r}]", "top_logprobs")
        return {}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs")}


def _only_null(found: Mapping[str, Any], where: str) -> None:
    for name, value in found.items():
        if value is not None:
            shown = f"{where}.{name[:100].encode('ascii', 'backslashreplace').decode()}"
            raise ApiError(400, f"{shown} is not supported by this server", shown, "unsupported")
