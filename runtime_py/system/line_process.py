"""A Python process that answers lines with lines: for work that came from strangers, limited and killed at will."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence

_MOST = 16 << 20  # bytes of a line
# What Python and dates need of our environment; keys and tokens are not for what came with a download.
_ENVIRONMENT = frozenset(
    (
        "PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
        "LANG", "LANGUAGE", "TZ", "TZDIR", "HOME", "SYSTEMROOT",
    )
)  # fmt: skip


class LineProcess:
    """A running process. Close it, or leave it to the end of this one."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """arguments: of the Python interpreter."""
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is meant for us alone
            env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith("LC_")},
        )  # fmt: skip

    def send(self, line: bytes) -> None:
        """Write a line, without its end. Raises OSError when the process has gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    def line(self, seconds: float) -> bytes:
        """The next line. Raises ValueError when it takes longer, the process ends, or it writes too much."""
        assert self._process.stdout is not None
        deadline, line = time.monotonic() + seconds, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ValueError(f"it takes longer than {seconds:g} s")
                part = self._process.stdout.read(1 << 16)
                if not part:
                    raise ValueError("it ended its process")
                line += part
                if len(line) > _MOST:
                    raise ValueError("it makes more than 16 MB of text")
        return bytes(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
