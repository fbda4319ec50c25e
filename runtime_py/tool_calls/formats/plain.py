"""Models whose template knows no tools: they are told of them in words, and a call is plain JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.json_calls import call_rule, list_rule, read_list
from runtime_py.tool_calls.notation import Format, Marks, Message, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text

_BEGIN = '{"tool_calls": '
_LIST = re.compile(r'\{\s*"tool_calls"\s*:\s*\[')
_CLOSE = re.compile(r"\s*\}")


class Plain(Format):
    """The answer is {"tool_calls": [...]} or text; results come back as messages of the user."""

    NAME = "plain"
    TEXT = r"/\s*([^{\s](?s:.*))?/"

    @classmethod
    def fits(cls, template: str) -> bool:
        return re.search(r"\btools\b", template) is None

    def prepared(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], dict[str, Any]]:
        told = [_without_tools(message) for message in messages]
        if not tools:
            return told, {}
        system = {"role": "system", "content": _instructions(tools)}
        if told and told[0]["role"] == "system":
            system["content"] = f"{told[0]['content']}\n\n{system['content']}"
            told = told[1:]
        return [system, *told], {}

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        return [f"rest: {literal(_BEGIN)} list {literal('}')}", list_rule(several), call_rule(tools)]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        if (yield from text.stands("{")) and (yield from text.match(_LIST)) and (yield from read_list(text, put)):
            yield from text.match(_CLOSE)
        yield from text.all(put.content)


def _instructions(tools: Sequence[Tool]) -> str:
    functions = json.dumps([tool.declared["function"] for tool in tools], ensure_ascii=False)
    call = '{"tool_calls": [{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}]}'
    return f"You can call these functions: {functions}\nTo call them, answer with nothing but JSON: {call}"


def _without_tools(message: Message) -> Message:
    if message["role"] == "tool":
        result = {"name": message.get("name", ""), "result": message["content"]}
        return {"role": "user", "content": json.dumps({"tool_result": result}, ensure_ascii=False)}
    if not message.get("tool_calls"):
        return message
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
    said = json.dumps({"tool_calls": calls}, ensure_ascii=False)
    before = f"{message['content']}\n" if message.get("content") else ""
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": before + said}
