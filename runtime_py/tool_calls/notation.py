"""What a tool-call format is made of: the tools, the marks of its notation, and the grammar of answers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from runtime_py.structured.forms import inline, literal
from runtime_py.text.decoder_stages import MARK
from runtime_py.tool_calls.reader import Reading, Text

Message = Mapping[str, Any]

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")  # of a function, as the OpenAI API has it, with dots
ANY = "/(?s:.*)/"  # any text


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `where`: its field of the request."""

    name: str
    parameters: Mapping[str, Any]  # JSON schema of an object
    strict: bool  # what a grammar cannot hold to the schema is refused, not left out
    where: str
    declared: Mapping[str, Any]  # as chat templates get it

    def arguments(self) -> str:
        """What the arguments are held to, as JSON within a rule. Raises InputError."""
        return inline(self.parameters, f"{self.where}.parameters", lenient=not self.strict)


@dataclass(frozen=True)
class Marks:
    """How a tokenizer writes the marks of a notation: as tokens that texts skip, by id, or as ordinary text."""

    special: Mapping[str, int]

    def rule(self, name: str) -> str:
        """Within a grammar."""
        return f"<[{self.special[name]}]>" if name in self.special else literal(name)

    def text(self, name: str) -> str:
        """Within an answer, where tokens that texts skip are shown."""
        return MARK + name if name in self.special else name


@dataclass(frozen=True)
class Reasoning:
    """The marks around what a model thinks before its answer."""

    opening: str
    closing: str
    title: str = ""  # behind the opening mark, and no part of the text


class Put(Protocol):
    """Where a format puts what it reads."""

    def content(self, text: str) -> None:
        """Text for the user."""

    def reasoning(self, text: str) -> None:
        """Text that the model wrote for itself."""

    def call(self, name: str) -> None:
        """A call begins."""

    def arguments(self, text: str) -> None:
        """More of its arguments, which are an object of JSON."""


@dataclass(frozen=True)
class Asked:
    """What an answer may be: with `form` its text is held to one; without tools it has no call; forced: it has one."""

    tools: tuple[Tool, ...] = ()
    forced: bool = False
    several: bool = True
    form: bool = False


class Format(ABC):
    """A notation of tool calls: the rules that hold an answer to it, and read(), which reads such an answer.

    A format says how its calls look (`rest`); what may stand before them is the same for all (`rules`).
    """

    NAME: ClassVar[str]
    MARKS: ClassVar[tuple[str, ...]] = ()  # of the notation; those that are special tokens are shown to read()
    OPENING: ClassVar[str] = ""  # the mark that the first call begins with; "": calls are the whole answer
    TEXT: ClassVar[str] = ANY  # what an answer without calls may be
    SEVERAL: ClassVar[bool] = True  # whether an answer may have several calls
    CHANNELS: ClassVar[bool] = False  # whether an answer without calls has marks, too

    def __init__(self, template: str) -> None:
        """template: the chat template, for notations with variants."""
        self.template = template

    @classmethod
    @abstractmethod
    def fits(cls, template: str) -> bool:
        """Whether a chat template writes this notation."""

    @abstractmethod
    def rest(self, tools: Sequence[Tool], marks: Marks, several: bool) -> list[str]:
        """Rules, one of them called `rest`: the calls behind the opening mark of the first."""

    @abstractmethod
    def read(self, text: Text, put: Put, marks: Marks) -> Reading:
        """Read an answer, behind its reasoning."""

    def reasoning(self) -> Reasoning | None:
        """The marks around reasoning, where the template knows any."""
        return Reasoning("<think>", "</think>") if "</think>" in self.template else None

    def names(self) -> frozenset[str]:
        """All marks that the notation knows."""
        found = self.reasoning()
        return frozenset(self.MARKS) | (frozenset() if found is None else {found.opening, found.closing})

    def thinking(self, prompt: str) -> bool:
        """Whether a prompt (its last tokens, special ones by name) ends where the model is to think."""
        marks = self.reasoning()
        return marks is not None and prompt.rstrip().endswith(marks.opening)

    def prepared(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], dict[str, Any]]:
        """The conversation and the variables that the chat template gets."""
        return list(messages), {"tools": [tool.declared for tool in tools]} if tools else {}

    def rules(self, asked: Asked, marks: Marks, thinking: bool) -> str:
        """The grammar of an answer, which calls the form of its text `@form`. thinking: it begins within reasoning."""
        before, text, rules = self._before(marks, thinking, spaces=asked.form or asked.forced)
        if asked.tools:
            rules += self.rest(asked.tools, marks, asked.several and self.SEVERAL)
        opening = marks.rule(self.OPENING) if self.OPENING else ""
        if asked.forced:
            return "\n".join([f"start: {before} {opening} rest", *rules])
        if asked.form:
            calls = f" | {before} {opening} rest" if asked.tools else ""
            return "\n".join([f"start: {before} @form{calls}", *rules])
        if not self.OPENING:
            start = [f"start: {before} TEXT | {before} rest"]
        elif self.OPENING in marks.special:
            start = [f"start: {before} TEXT ({opening} rest)?"]
        else:
            start = [f"start: {before} TEXT | {before} lead rest", f"lead[lazy]: {text} {opening}"]
        return "\n".join([*start, f"TEXT: {text}", *rules])

    def answer(self, text: Text, put: Put, marks: Marks, thinking: bool) -> Reading:
        """Read an answer with its reasoning. thinking: it begins within that."""
        found = self.reasoning()
        if found is not None:
            opened = thinking or (yield from text.starts(marks.text(found.opening))) is not None
            if opened:
                if found.title:
                    yield from text.starts(found.title)
                yield from text.until((marks.text(found.closing),), put.reasoning)
                yield from text.spaces()
        yield from self.read(text, put, marks)

    def _before(self, marks: Marks, thinking: bool, spaces: bool) -> tuple[str, str, list[str]]:
        """What stands for reasoning before an answer, the answer's free text, and the rules of the former.

        spaces: some may follow the reasoning; free text has its own.
        """
        found = self.reasoning()
        if found is None:
            return "", self.TEXT, []
        closing = marks.rule(found.closing)
        after = " /[ \\n]{0,4}/" if spaces else ""
        if found.closing in marks.special:
            rules = [f"thought: THOUGHT {closing}{after}", f"THOUGHT: {ANY}"]
        else:
            rules = [f"thought: closed{after}", f"closed[lazy]: {ANY} {closing}"]
        if thinking:
            return "thought", self.TEXT, rules
        rules.append(f"think: {marks.rule(found.opening)} thought")
        if found.opening in marks.special:
            return "think?", self.TEXT, rules
        return "think?", f"{self.TEXT} & ~/(?s:{re.escape(found.opening)}.*)/", rules
