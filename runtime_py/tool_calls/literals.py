"""Values as Gemma and LFM2 write them: JSON with other quotes, bare keys, and Python's True, False and None."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_WORD, _KEY = re.compile(r"\w+"), re.compile(r"[^\s:=,{}\[\]()]+")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_DEPTH = 100


class Malformed(ValueError):
    """The text is no such value."""


def parse_object(text: str, quotes: Sequence[str]) -> dict[str, Any]:
    """An object. quotes: marks around texts in which nothing is escaped, beside JSON's. Raises Malformed."""
    reader = _Literals(text, quotes)
    found = reader.value(0)
    if reader.rest() or not isinstance(found, dict):
        raise Malformed(text)
    return found


def parse_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of `[name(key=value), ...]`. Raises Malformed."""
    reader = _Literals(text, ())
    calls = []
    reader.take("[")
    while not reader.has("]"):
        name = reader.key()
        reader.take("(")
        calls.append((name, reader.pairs("=", ")", 0)))
        if not reader.has(","):
            reader.take("]")
            break
    if reader.rest():
        raise Malformed(text)
    return calls


class _Literals:
    def __init__(self, text: str, quotes: Sequence[str]) -> None:
        self._text, self._at, self._quotes = text, 0, quotes

    def rest(self) -> str:
        """What was not read."""
        return self._text[self._at :].strip()

    def has(self, mark: str) -> bool:
        """Whether the mark stands here; it is taken then."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def take(self, mark: str) -> None:
        if not self.has(mark):
            raise Malformed(f"{mark!r} is missing at {self._at}")

    def key(self) -> str:
        """A key or name: quoted or bare."""
        for quote in (*self._quotes, '"', "'"):
            if self.has(quote):
                return self._quoted(quote)
        return self._match(_KEY)

    def value(self, depth: int) -> Any:
        if depth > _DEPTH:
            raise Malformed("it nests too deeply")
        for quote in (*self._quotes, '"', "'"):
            if self.has(quote):
                return self._quoted(quote)
        if self.has("{"):
            return self.pairs(":", "}", depth + 1)
        if self.has("["):
            return self._items(depth + 1)
        if _NUMBER.match(self._text, self._at):
            return json.loads(self._match(_NUMBER))
        word = self._match(_WORD)
        if word not in _WORDS:
            raise Malformed(f"{word!r} is no value")
        return _WORDS[word]

    def pairs(self, between: str, end: str, depth: int) -> dict[str, Any]:
        """Keys with values up to the end."""
        found: dict[str, Any] = {}
        while not self.has(end):
            key = self.key()
            self.take(between)
            found[key] = self.value(depth + 1)
            if not self.has(","):
                self.take(end)
                break
        return found

    def _items(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self.has("]"):
            found.append(self.value(depth + 1))
            if not self.has(","):
                self.take("]")
                break
        return found

    def _quoted(self, quote: str) -> str:
        if len(quote) > 1:
            end = self._text.find(quote, self._at)
            if end < 0:
                raise Malformed("a text does not end")
            text, self._at = self._text[self._at : end], end + len(quote)
            return text
        found = re.compile(rf"((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL).match(self._text, self._at)
        if found is None:
            raise Malformed("a text does not end")
        self._at = found.end()
        body = found[1] if quote == '"' else found[1].replace("\\'", "'").replace('"', '\\"')
        try:
            return str(json.loads(f'"{body}"', strict=False))
        except ValueError as error:
            raise Malformed(str(error)) from None

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise Malformed(f"nothing is at {self._at}")
        self._at = found.end()
        return found[0]
