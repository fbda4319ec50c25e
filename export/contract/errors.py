"""The error types that end in one line: wrong input from outside, and results that are no numbers."""

from __future__ import annotations

import unicodedata

_LONGEST = 4000  # characters of a message; a name in a file may have millions


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what is wrong, where, and what would be right.

    Whatever it quotes, the message shows no control characters. The command line turns it into exit code 2 without a
    traceback; anything else that escapes is our fault (code 1).
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NotFiniteError(RuntimeError):
    """A model's result is NaN or infinite, so nothing can be chosen or measured. The message is one line.

    The command line turns it into exit code 1 without a traceback.
    """


def printable(text: str) -> str:
    """The text in one line that a terminal cannot take for a command and every encoding of Unicode can write.

    Controls, line breaks, half surrogates and marks that turn the direction of writing are escaped as in Python; what
    is longer than a screen is cut in its middle.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(_escaped(c) if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or "\u202a" <= character <= "\u202e" or (
        "\u2066" <= character <= "\u2069"
    )  # fmt: skip


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
