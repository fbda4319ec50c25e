"""gpt-oss (Harmony): messages on channels. Analysis is reasoning, one to a function is a call, final is the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runtime_py.structured.forms import literal
from runtime_py.tool_calls.notation import ANY, Asked, Format, Marks, Put, Tool
from runtime_py.tool_calls.reader import Reading, Text

_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"
_TO = re.compile(r"to=(?:functions\.)?([a-zA-Z0-9_.-]+)")


class GptOss(Format):
    """An answer is several messages; a call ends it, with a token that the model's configuration names."""

    NAME = "gpt-oss"
    MARKS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END)
    SEVERAL = False
    CHANNELS = True

    @classmethod
    def fits(cls, template: str) -> bool:
        return _CHANNEL in template and _MESSAGE in template

    def reasoning(self) -> None:
        """None: it is on a channel, which read() knows."""

    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        channel, message = marks.rule(_CHANNEL), marks.rule(_MESSAGE)
        kind = f'(" "? {marks.rule(_CONSTRAIN)} "json" | " json")?'
        calls = [
            f"({channel} {literal(f'commentary to=functions.{tool.name}')} | "
            f'{literal(f" to=functions.{tool.name}")} {channel} "commentary") {kind} {message} {tool.arguments()}'
            for tool in tools
        ]
        return [f"call: {' | '.join(calls)}"]

    def rules(self, asked: Asked, marks: Marks, thinking: bool) -> str:
        def on(channel: str, what: str) -> str:
            return f"{marks.rule(_CHANNEL)} {literal(channel)} {marks.rule(_MESSAGE)} {what}"

        ends = ["call"] if asked.tools else []
        ends += [] if asked.forced else [on("final", "@form" if asked.form else "TEXT")]
        before = [on("analysis", "TEXT"), on("commentary", "TEXT")][: 2 if asked.tools else 1]
        again = f'{marks.rule(_END)} {marks.rule(_START)} "assistant"'
        rules = self.rest(asked.tools, marks, False) if asked.tools else []
        start = f"start: (({' | '.join(before)}) {again})* ({' | '.join(ends)})"
        return "\n".join([start, f"TEXT: {ANY}", *rules])

    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        message, channel = marks.text(_MESSAGE), re.compile(re.escape(marks.text(_CHANNEL)) + r"(\w+)")
        ends = tuple(map(marks.text, (_END, _START)))
        while True:
            header: list[str] = []
            if (yield from text.until((message,), header.append)) is None:
                return
            to, where = _TO.search("".join(header)), channel.search("".join(header))
            if to:
                put.call(to[1])
                yield from text.until(ends, put.arguments)
            else:
                thought = where is not None and where[1] == "analysis"
                yield from text.until(ends, put.reasoning if thought else put.content)
