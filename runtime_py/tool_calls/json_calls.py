"""Calls that are objects of JSON with a name and arguments: what several notations have in common."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.notation import Put, Tool
from runtime_py.tool_calls.reader import Text

_BEGIN = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_END = re.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}')
_NEXT = re.compile(r"\s*([,\]])")


def call_rule(tools: Sequence[Tool], arguments: str = "arguments") -> str:
    """The rule `call`: {"name": ..., "arguments": {...}} for one of the tools. arguments: what they are called."""
    calls = [f"{literal(begin(tool.name, arguments))} {tool.arguments()} {literal('}')}" for tool in tools]
    return f"call: {' | '.join(calls)}"


def begin(name: str, arguments: str) -> str:
    """A call up to its arguments."""
    return f'{{"name": "{name}", "{arguments}": '


def list_rule(several: bool) -> str:
    """The rule `list`: calls in brackets."""
    return f'list: "[" call{" (" + literal(", ") + " call)*" if several else ""} "]"'


def read_call(text: Text, put: Put) -> Generator[None, None, bool]:
    """Read one such object; whether it was complete. What is none is content."""
    found = yield from text.match(_BEGIN)
    if found is None:
        return False
    put.call(found[1])
    if not (yield from text.json_object(put.arguments)):
        return False
    return (yield from text.match(_END)) is not None


def read_list(text: Text, put: Put) -> Generator[None, None, bool]:
    """Read calls up to the bracket that closes their list, whose opening one was taken; whether it was complete."""
    while (yield from read_call(text, put)):
        found = yield from text.match(_NEXT)
        if found is None or found[1] == "]":
            return found is not None
    return False
