"""Llama 3.1 and later: the answer is an object of JSON with name and parameters, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.tool_calls.json_calls import call_rule, read_call
from runtime_py.tool_calls.notation import Format, Marks, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text

_PYTHON = "<|python_tag|>"


class Llama3(Format):
    """One call, with or without a mark before it; the templates refuse a conversation with two in one answer."""

    NAME = "llama3"
    MARKS = (_PYTHON,)
    TEXT = r"/\s*([^{\s](?s:.*))?/"
    SEVERAL = False

    @classmethod
    def fits(cls, template: str) -> bool:
        return "ipython" in template and '"parameters": ' in template

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        return [f"rest: {marks.rule(_PYTHON)}? call", call_rule(tools, "parameters")]

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        marked = yield from text.starts(marks.text(_PYTHON))
        if marked is not None or (yield from text.stands("{")):
            yield from read_call(text, put)
        yield from text.all(put.content)
