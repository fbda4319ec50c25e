"""Text that arrives in pieces, read by generators: they yield where they need more, and put out what is certain.

A format reads an answer as if it were all there (`yield from text.until(...)`); whatever it puts out does not depend on
how the text was cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

from runtime_py.text.decoder_stages import overlap

Reading = Generator[None, None, Any]
_LONGEST = 4096  # characters of what match() looks for


def nowhere(text: str) -> None:
    """Where text is put that nobody is to see."""


class Text:
    """What has come and was not read yet."""

    def __init__(self) -> None:
        self.rest, self.ended = "", False

    def until(self, ends: Sequence[str], put: Callable[[str], None]) -> Generator[None, None, str | None]:
        """Put out the text before the first of the ends, which is taken; its name, None at the end of the text."""
        while True:
            found = [(at, end) for end in ends if (at := self.rest.find(end)) >= 0]
            if found:
                at, end = min(found)
                self._put(at, put)
                self.rest = self.rest[len(end) :]
                return end
            kept = 0 if self.ended else max((overlap(self.rest, end) for end in ends), default=0)
            self._put(len(self.rest) - kept, put)
            if self.ended:
                return None
            yield

    def all(self, put: Callable[[str], None]) -> Generator[None, None, None]:
        """Put out the text to its end."""
        yield from self.until((), put)

    def starts(self, *starts: str) -> Generator[None, None, str | None]:
        """Which of these texts stands here, behind spaces that are taken with it; None: none of them."""
        while True:
            here = self.rest.lstrip()
            found = next((start for start in starts if here.startswith(start)), None)
            if found is not None:
                self.rest = here[len(found) :]
                return found
            if self.ended or (here and not any(start.startswith(here) for start in starts)):
                return None
            yield

    def stands(self, start: str) -> Generator[None, None, bool]:
        """Whether this character stands here, behind spaces, which are taken if so."""
        found = self.rest.lstrip()[:1]
        while not found and not self.ended:
            yield
            found = self.rest.lstrip()[:1]
        if found == start:
            self.rest = self.rest.lstrip()
        return found == start

    def spaces(self) -> Generator[None, None, str]:
        """Take the spaces that stand here; the character after them, "" at the end of the text."""
        while True:
            self.rest = self.rest.lstrip()
            if self.rest or self.ended:
                return self.rest[:1]
            yield

    def match(self, pattern: re.Pattern[str]) -> Generator[None, None, re.Match[str] | None]:
        """The match that stands here, and is taken; None: there will be none.

        A pattern must not match a text that another piece could make longer and different."""
        while True:
            found = pattern.match(self.rest)
            if found:
                self.rest = self.rest[found.end() :]
                return found
            if self.ended or len(self.rest) > _LONGEST:
                return None
            yield

    def json_object(self, put: Callable[[str], None]) -> Generator[None, None, bool]:
        """Put out an object of JSON as it stands here; whether it was complete."""
        depth, quoted, escaped = 0, False, False
        while True:
            for at, character in enumerate(self.rest):
                if quoted:
                    quoted, escaped = escaped or character != '"', not escaped and character == "\\"
                elif character == '"':
                    quoted = True
                elif character in "{[":
                    depth += 1
                elif character in "}]":
                    depth -= 1
                if depth == 0 and not quoted and (character in "}]" or not character.isspace()):
                    complete = character in "}]"
                    self._put(at + complete, put)
                    return complete
            self._put(len(self.rest), put)
            if self.ended:
                return False
            yield

    def _put(self, size: int, put: Callable[[str], None]) -> None:
        text, self.rest = self.rest[:size], self.rest[size:]
        if text:
            put(text)
