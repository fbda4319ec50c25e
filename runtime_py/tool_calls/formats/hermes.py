"""Hermes, Qwen2.5, Qwen3, SmolLM3: <tool_call>, a line of JSON with name and arguments, </tool_call>."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.json_calls import call_rule, read_call
from runtime_py.tool_calls.notation import Format, Marks, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text, nowhere

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


class Hermes(Format):
    """Calls follow the answer's text, one after the other on lines of their own."""

    NAME = "hermes"
    MARKS = (_OPENING, _CLOSING)
    OPENING = _OPENING

    @classmethod
    def fits(cls, template: str) -> bool:
        return _OPENING in template and "<function=" not in template

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        line, opening, closing = literal("\n"), marks.rule(_OPENING), marks.rule(_CLOSING)
        more = f" ({line} {opening} one)*" if several else ""
        return [f"rest: one{more}", f"one: {line} call {line} {closing}", call_rule(tools)]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        opening, closing = marks.text(_OPENING), marks.text(_CLOSING)
        while (yield from text.until((opening,), put.content)) is not None:
            if not (yield from read_call(text, put)):
                yield from text.all(put.content)
                return
            yield from text.until((closing,), nowhere)
