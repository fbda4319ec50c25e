"""One answer as the API shows it: its text, its reasoning and its calls, as they become certain."""

from __future__ import annotations

import secrets
import string
from collections.abc import Generator
from dataclasses import dataclass, replace

from runtime_py.text.decoder_stages import MARK
from runtime_py.tool_calls.notation import Format, Marks
from runtime_py.tool_calls.reader import Text

_ALPHABET = string.ascii_letters + string.digits
_ID = 9  # characters of a call's id: what Mistral's templates insist on


@dataclass(frozen=True)
class Part:
    """More of an answer: text, reasoning, or of the call with this number its beginning (`name`) or its arguments."""

    content: str = ""
    reasoning: str = ""
    call: int = -1
    name: str = ""
    id: str = ""
    arguments: str = ""


class AnswerReader:
    """Feed the generated text, special tokens shown; get the parts that are certain."""

    def __init__(self, notation: Format, marks: Marks, thinking: bool) -> None:
        """thinking: the prompt ends within the model's reasoning."""
        self.calls = 0
        self._text, self._put = Text(), _Parts(self)
        self._reading = self._all(notation, marks, thinking)
        next(self._reading, None)

    def push(self, text: str) -> list[Part]:
        """What became certain with this text."""
        self._text.rest += text
        next(self._reading, None)
        return self._put.taken()

    def end(self, text: str = "") -> list[Part]:
        """The rest, with the last text."""
        self._text.rest += text
        self._text.ended = True
        for _ in self._reading:
            pass
        self._put.finish()
        return self._put.taken()

    def _all(self, notation: Format, marks: Marks, thinking: bool) -> Generator[None, None, None]:
        yield from notation.answer(self._text, self._put, marks, thinking)
        yield from self._text.all(self._put.content)


class _Parts:
    """Collects parts. Spaces wait: those before a call and around reasoning are not shown."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader, self._parts = reader, list[Part]()
        self._spaces = ""  # of the text, since its last other character
        self._thought = self._thought_spaces = ""

    def content(self, text: str) -> None:
        text = self._spaces + text.replace(MARK, "")
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        self._add(Part(content=kept))

    def reasoning(self, text: str) -> None:
        text = self._thought_spaces + text.replace(MARK, "")
        text = text if self._thought else text.lstrip()
        kept = text.rstrip()
        self._thought_spaces = text[len(kept) :]
        self._thought = self._thought or kept[:1]
        self._add(Part(reasoning=kept))

    def call(self, name: str) -> None:
        self._spaces = ""
        self._parts.append(
            Part(call=self._reader.calls, name=name, id="".join(secrets.choice(_ALPHABET) for _ in range(_ID)))
        )
        self._reader.calls += 1

    def arguments(self, text: str) -> None:
        self._add(Part(call=self._reader.calls - 1, arguments=text.replace(MARK, "")))

    def finish(self) -> None:
        """The answer has ended: what it ends with is a part of it."""
        if not self._reader.calls:
            self._add(Part(content=self._spaces))
        self._spaces = ""

    def taken(self) -> list[Part]:
        """The parts since the last time."""
        parts, self._parts = self._parts, []
        return parts

    def _add(self, part: Part) -> None:
        if not (part.content or part.reasoning or part.arguments):
            return
        last = self._parts[-1] if self._parts else None
        if last is not None and last.call == part.call and not last.name and bool(last.content) == bool(part.content):
            self._parts[-1] = replace(
                last,
                content=last.content + part.content,
                reasoning=last.reasoning + part.reasoning,
                arguments=last.arguments + part.arguments,
            )
        else:
            self._parts.append(part)
