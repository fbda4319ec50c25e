"""Mistral: [TOOL_CALLS] and a list of JSON objects, or, in templates with [ARGS], a name and its arguments each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.json_calls import call_rule, list_rule, read_list
from runtime_py.tool_calls.notation import Format, Marks, Put, Reasoning, Tool
from runtime_py.tool_calls.reader import Reading, Text

_CALLS, _ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_LIST, _NAME = re.compile(r"\s*\["), re.compile(r"\s*([a-zA-Z0-9_.-]+)(?=[^a-zA-Z0-9_.-])")
_THINK = Reasoning("[THINK]", "[/THINK]")


class Mistral(Format):
    """Which of the two forms, the template says."""

    NAME = "mistral"
    MARKS = (_CALLS, _ARGUMENTS, _THINK.opening, _THINK.closing)
    OPENING = _CALLS

    @classmethod
    def fits(cls, template: str) -> bool:
        return _CALLS in template

    def reasoning(self) -> Reasoning | None:
        return _THINK if _THINK.closing in self.template else super().reasoning()

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        if not self._named():
            return [f"rest: {literal(' ')}? list", list_rule(several), call_rule(tools)]
        calls = [f"{literal(tool.name)} {marks.rule(_ARGUMENTS)} {tool.arguments()}" for tool in tools]
        more = f" ({marks.rule(_CALLS)} call)*" if several else ""
        return [f"rest: call{more}", f"call: {' | '.join(calls)}"]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        while (yield from text.until((marks.text(_CALLS),), put.content)) is not None:
            if self._named():
                name = yield from text.match(_NAME)
                if name is None or (yield from text.starts(marks.text(_ARGUMENTS))) is None:
                    break
                put.call(name[1])
                if not (yield from text.json_object(put.arguments)):
                    break
            elif (yield from text.match(_LIST)) is None or not (yield from read_list(text, put)):
                break
        yield from text.all(put.content)

    def _named(self) -> bool:
        return _ARGUMENTS in self.template
