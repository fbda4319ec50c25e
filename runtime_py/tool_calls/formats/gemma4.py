"""Gemma 4: <|tool_call>call:NAME{key:value,...}<tool_call|>, texts between <|"|>, keys bare; thoughts on a channel."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.bare_values import BareValues
from runtime_py.tool_calls.literals import Malformed, parse_object
from runtime_py.tool_calls.notation import Format, Marks, Put, Reasoning, Tool
from runtime_py.tool_calls.reader import Reading, Text

_OPENING, _CLOSING, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_THOUGHT = Reasoning("<|channel>", "<channel|>", "thought\n")
_CALL = re.compile(r"\s*call:([a-zA-Z0-9_.-]+)(?=\{)")


class Gemma4(Format):
    """Calls follow each other directly. Arguments become JSON when a call is complete."""

    NAME = "gemma4"
    MARKS = (_OPENING, _CLOSING, _QUOTE, _THOUGHT.opening, _THOUGHT.closing)
    OPENING = _OPENING

    @classmethod
    def fits(cls, template: str) -> bool:
        return _OPENING in template

    def reasoning(self) -> Reasoning | None:
        return _THOUGHT if _THOUGHT.closing in self.template else None

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        values = BareValues(marks.rule(_QUOTE), _QUOTE in marks.special)
        calls = [f"{literal(f'call:{tool.name}')} {values.arguments(tool)}" for tool in tools]
        more = f" ({marks.rule(_OPENING)} call)*" if several else ""
        return [f"rest: call{more}", f"call: ({' | '.join(calls)}) {marks.rule(_CLOSING)}", *values.rules]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        quote, closing = marks.text(_QUOTE), marks.text(_CLOSING)
        while (yield from text.until((marks.text(_OPENING),), put.content)) is not None:
            found = yield from text.match(_CALL)
            if found is None:
                break
            put.call(found[1])
            parts: list[str] = []
            if (yield from text.until((closing,), parts.append)) is None:
                return  # cut off: its arguments are not known
            try:
                put.arguments(json.dumps(parse_object("".join(parts), (quote,)), ensure_ascii=False))
            except Malformed:
                put.arguments("".join(parts))
        yield from text.all(put.content)
