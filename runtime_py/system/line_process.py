"""A Python process that answers lines with lines: for work that came from strangers, limited and killed at will."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_MOST = 16 << 20  # bytes of a line
# What Python and dates need of our environment; keys and tokens are not for what came with a download.
_ENVIRONMENT = frozenset(
    (
        "PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
        "LANG", "LANGUAGE", "TZ", "TZDIR", "HOME", "SYSTEMROOT",
    )
)  # fmt: skip

_PATIENCE = 4  # times the seconds that a process may compute, on the clock


def _computed(process: int) -> float | None:
    """Seconds of processor time of a process (proc_pid_stat(5)); None where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


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
        """The next line. Raises ValueError when it takes longer, the process ends, or it writes too much.

        On Linux the seconds are those that the process computes, and _PATIENCE times as many on the clock: a machine
        that is busy with other work does not make a line a hostile one.
        """
        assert self._process.stdout is not None
        start, before, line = time.monotonic(), _computed(self._process.pid), bytearray()
        longest = seconds if before is None else seconds * _PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                ready = selector.select(seconds / 8)
                computed = (_computed(self._process.pid) or 0.0) - (before or 0.0)
                if computed >= seconds or time.monotonic() - start >= longest:
                    raise ValueError(f"it takes longer than {seconds:g} s")
                if not ready:
                    continue
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
