"""From what a request asks of its answer to the grammar that holds the model to it and the reader that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_py.chat.template import Message, Template
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.tools import ToolUse
from runtime_py.structured import forms
from runtime_py.structured.compiler import Compiled, Compiler
from runtime_py.structured.forms import Form
from runtime_py.structured.vocabulary import special_tokens
from runtime_py.text.generator import TextGenerator
from runtime_py.text.tokenizing import boundary
from runtime_py.tool_calls.answer import AnswerReader
from runtime_py.tool_calls.formats.registry import Unknown, notation
from runtime_py.tool_calls.notation import Asked, Format, Marks

_END = 16  # tokens of a prompt that tell whether it ends within the model's reasoning


@dataclass(frozen=True)
class Plan:
    """How one request is answered. Completions have neither a notation nor tools."""

    notation: Format | None = None
    marks: Marks = Marks({})  # noqa: RUF009 (frozen)
    asked: Asked = Asked()  # noqa: RUF009 (frozen)
    form: Form | None = None

    def shown(self) -> frozenset[str]:
        """Special tokens that the answer's text has to show to its reader."""
        return frozenset(self.marks.special) if self.reads() else frozenset()

    def reads(self) -> bool:
        """Whether the answer's text has to be read: it may have calls, reasoning or other marks."""
        found = self.notation
        return found is not None and bool(self.asked.tools or found.CHANNELS or found.reasoning() is not None)

    def reader(self, prompt: str) -> AnswerReader | None:
        """For one choice. prompt: its last tokens."""
        if self.notation is None or not self.reads():
            return None
        return AnswerReader(self.notation, self.marks, self.notation.thinking(prompt))

    def grammar(self, prompt: str) -> Form | None:
        """What the answer is held to, None for nothing. Raises InputError naming the field."""
        if self.form is None and not self.asked.tools:
            return None
        if self.notation is None or not self.reads():
            return self.form
        rules = self.notation.rules(self.asked, self.marks, self.notation.thinking(prompt))
        return forms.lark(rules, "tools") if self.form is None else forms.within(self.form, rules)


class Answering:
    """Plans for one model."""

    def __init__(self, generator: TextGenerator, template: Template) -> None:
        self._tokenizer, self._template = generator.tokenizer, template
        self._compiler = Compiler(generator.tokenizer, generator.session.vocab_size)
        named = special_tokens(generator.tokenizer, generator.session.vocab_size)
        self._special = {name: token for token, name in named.items()}

    def chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any], use: ToolUse, form: Form | None
    ) -> tuple[Plan, Sequence[Message], Mapping[str, Any]]:
        """The plan, the messages and the template's variables. Raises ApiError, and InputError about the template."""
        if use.tools and "tools" in variables:
            raise ApiError(400, "tools: chat_template_kwargs has tools, too", "tools")
        declared = {"tools": [tool.declared for tool in use.tools]} if use.tools else {}
        found = notation(self._template.source({**variables, **declared}))
        if use.tools and isinstance(found, Unknown):
            message = "tools: this model's chat template writes calls in a notation that this server does not know"
            raise ApiError(400, message, "tools", "unsupported")
        asked = Asked(use.tools, use.forced, use.several, form is not None)
        if form is not None and use.forced:
            raise ApiError(400, f"{form.where}: tool_choice asks for a call, so there is no text", form.where)
        special = {name: token for name, token in self._special.items() if name in found.names()}
        told, more = found.prepared(messages, use.tools)
        return Plan(found, Marks(special), asked, form), told, {**variables, **more}

    def prompt_end(self, ids: Sequence[int]) -> str:
        """The last tokens of a prompt, special ones by name."""
        with boundary():
            return str(self._tokenizer.decode(list(ids[-_END:]), skip_special_tokens=False))

    def compiled(self, plan: Plan, prompt: str) -> Compiled | None:
        """The plan's grammar, compiled; None where there is none. Raises InputError that begins with the field."""
        found = plan.grammar(prompt)
        return None if found is None else self._compiler.compile(found)

    def close(self) -> None:
        """End the process that tries grammars."""
        self._compiler.close()
