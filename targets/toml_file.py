"""Reads the TOML files of targets, the user's own ones too: only regular files of a sensible size."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST = 1 << 20  # bytes


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and data of a file. Raises ValueError, one line, when it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would make it wait
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError(f"{path}: is not a regular file")
            data = file.read(_MOST + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _MOST:
        raise ValueError(f"{path}: larger than {_MOST >> 20} MB")
    try:
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from None
