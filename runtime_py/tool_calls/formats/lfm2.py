"""LFM2: <|tool_call_start|>[name(key=value, ...), ...]<|tool_call_end|>, values as Python writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.bare_values import keyword_arguments
from runtime_py.tool_calls.literals import Malformed, parse_calls
from runtime_py.tool_calls.notation import ANY, Format, Marks, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text

_OPENING, _CLOSING = "<|tool_call_start|>", "<|tool_call_end|>"


class Lfm2(Format):
    """Text may stand before and after the list. Calls are put out when the list is complete."""

    NAME = "lfm2"
    MARKS = (_OPENING, _CLOSING)
    OPENING = _OPENING

    @classmethod
    def fits(cls, template: str) -> bool:
        return _OPENING in template or re.search("tool_list_start|List of tools: ", template) is not None

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        rules: list[str] = []
        calls = [f"{literal(tool.name + '(')} {keyword_arguments(tool, rules)} {literal(')')}" for tool in tools]
        more = f" ({literal(', ')} call)*" if several else ""
        return [
            f'rest: "[" call{more} "]" {marks.rule(_CLOSING)} AFTER?',
            f"call: {' | '.join(calls)}",
            f"AFTER: {ANY}",
            *rules,
        ]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        while (yield from text.until((marks.text(_OPENING),), put.content)) is not None:
            parts: list[str] = []
            complete = (yield from text.until((marks.text(_CLOSING),), parts.append)) is not None
            try:
                calls = parse_calls("".join(parts))
            except Malformed:
                if complete:
                    put.content("".join(parts))
                continue
            for name, arguments in calls:
                put.call(name)
                put.arguments(json.dumps(arguments, ensure_ascii=False))
