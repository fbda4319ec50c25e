"""Text from a command line or a terminal, which hand over bytes that need not be UTF-8."""

from __future__ import annotations

import os

from export.contract.errors import InputError


def typed_text(text: str, name: str) -> str:
    """The text as UTF-8 has it, also where the locale took its bytes for another encoding.

    Python keeps bytes that it cannot decode as half surrogate pairs. Raises InputError, which calls the text `name`,
    when they are no UTF-8 either.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise InputError(f"{name} is not UTF-8 text") from None
