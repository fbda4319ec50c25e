"""The folder of the cache: whose it is, its files, and how it stays within its size.

Only files of the cache's own names are ever removed, those first that have not been used for the longest time.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from export.contract.errors import InputError

_NAME = re.compile(r"[0-9a-f]{64}\.(part|state)")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.(part|state)\.[0-9a-f]{16}\..*")
_ABANDONED = 3600.0  # seconds after which a file that was never finished is removed


class CacheFolder:
    """Files by key."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Makes the folder unless it is there. Raises InputError for one that others can write into, or nobody can."""
        self._folder, self._most = folder, most_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise InputError(f"--prompt-cache {folder}: {error.strerror or error}") from None
        if hasattr(os, "geteuid"):
            if found.st_uid != os.geteuid():
                raise InputError(f"--prompt-cache {folder}: belongs to another user")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InputError(f"--prompt-cache {folder}: others can write into it (chmod go-w changes that)")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"--prompt-cache {folder}: cannot be written")

    def path(self, key: bytes, kind: str) -> Path:
        """Where the file of a key is. kind: "part" or "state"."""
        return self._folder / f"{key.hex()}.{kind}"

    def used(self, paths: Sequence[Path]) -> None:
        """Note that these files, the parts of one prompt from its start on, have been used just now."""
        now = time.time_ns()
        for i, path in enumerate(reversed(paths)):  # a part is of no use without those before it: they go last
            with suppress(OSError):
                os.utime(path, ns=(now + 1000 * i, now + 1000 * i))

    def trim(self) -> None:
        """Remove what has not been used for the longest time until the rest fits, and what was never finished."""
        held, now = [], time.time()
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if _NAME.fullmatch(entry.name):
                    held.append((found.st_mtime_ns, found.st_size, entry.path))
                elif _UNFINISHED.fullmatch(entry.name) and now - found.st_mtime > _ABANDONED:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self._most:
                return
            with suppress(OSError):
                os.unlink(path)
            total -= size
