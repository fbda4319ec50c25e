"""The tools of a chat request, and which of them its answer may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.contract.errors import InputError
from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import optional, text
from runtime_py.structured.forms import check_json
from runtime_py.tool_calls.notation import NAME, Tool

_MOST = 128


@dataclass(frozen=True)
class ToolUse:
    """Without tools there is no call; forced: there is one."""

    tools: tuple[Tool, ...] = ()
    forced: bool = False
    several: bool = True


def tool_use(body: Mapping[str, Any]) -> ToolUse:
    """tools, tool_choice and parallel_tool_calls. Raises ApiError naming the field that is wrong."""
    found = body.get("tools")
    if found is not None and not isinstance(found, list):
        raise ApiError(400, "tools must be a list of tools", "tools")
    if len(found or []) > _MOST:
        raise ApiError(400, f"tools has {len(found or [])} entries; at most {_MOST} are accepted", "tools")
    tools = [_tool(one, f"tools[{i}]") for i, one in enumerate(found or [])]
    if len({tool.name for tool in tools}) < len(tools):
        raise ApiError(400, "tools has two functions of the same name", "tools")
    names, forced = _choice(body.get("tool_choice"), {tool.name for tool in tools})
    several = optional(body, "parallel_tool_calls", bool, True)
    return ToolUse(tuple(tool for tool in tools if tool.name in names), forced, several)


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise ApiError(400, f"{where}.type must be function: this server knows no other tools", f"{where}.type")
    fields.check(value, fields.TOOL, False, f"{where}.")
    where = f"{where}.function"
    function = value.get("function")
    if not isinstance(function, dict):
        raise ApiError(400, f"{where} must be an object with name", where)
    fields.check(function, fields.FUNCTION, False, f"{where}.")
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ApiError(400, f"{where}.name must be 1 to 64 letters, digits, _, - or .", f"{where}.name")
    description = text(optional(function, "description", str, "", f"{where}."), f"{where}.description")
    parameters = optional(function, "parameters", dict, {}, f"{where}.")
    try:
        check_json(parameters, f"{where}.parameters")
    except InputError as error:
        raise ApiError(400, str(error), f"{where}.parameters") from None
    if parameters.get("type", "object") != "object":
        raise ApiError(400, f"{where}.parameters must be the schema of an object", f"{where}.parameters")
    parameters = {"type": "object", "properties": {}, **parameters}
    strict = optional(function, "strict", bool, False, f"{where}.")
    declared = {"name": name, "description": description, "parameters": parameters}
    return Tool(name, parameters, strict, where, {"type": "function", "function": declared})


def _choice(value: Any, names: set[str]) -> tuple[set[str], bool]:
    """Which tools may be called, and whether one must be."""
    where = "tool_choice"
    if value in (None, "auto"):
        return names, False
    if value == "none":
        return set(), False
    if value == "required" and names:
        return names, True
    if isinstance(value, dict) and value.get("type") == "function":
        fields.check(value, fields.TOOL, False, f"{where}.")
        return {_named(value, names, where)}, True
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        fields.check(value, fields.ALLOWED_CHOICE, False, f"{where}.")
        allowed = optional(value, "allowed_tools", dict, {}, f"{where}.")
        fields.check(allowed, fields.ALLOWED_TOOLS, False, f"{where}.allowed_tools.")
        mode, listed = allowed.get("mode"), allowed.get("tools")
        if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
            message = f"{where}.allowed_tools must be an object with mode (auto or required) and a list of tools"
            raise ApiError(400, message, f"{where}.allowed_tools")
        return {_named(one, names, f"{where}.allowed_tools.tools") for one in listed}, mode == "required"
    message = f"{where} must be none, auto, required or a function, and the last two need tools"
    raise ApiError(400, message, where)


def _named(value: Any, names: set[str], where: str) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in names:
        raise ApiError(400, f"{where} must name a function of tools", where)
    return name
