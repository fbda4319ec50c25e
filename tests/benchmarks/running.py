"""Programs that benchmarks run: what they print, how long they take and how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class ProgramFailed(Exception):
    """A program ended with another code than 0; holds the end of what it said."""


@dataclass(frozen=True)
class Finished:
    """One run of a program that ended well."""

    printed: str
    peak_bytes: int  # of memory, its own or that of its largest child
    seconds: float
    processor_seconds: float  # of it and of the children that it waited for


def finished(words: Sequence[object], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a program to its end. Raises ProgramFailed, or OSError when it cannot be started."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen([str(word) for word in words], stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise ProgramFailed(f"{words[0]} failed:\n{err.read().decode(errors='replace')[-2000:]}")
        printed = out.read().decode(errors="replace")
    return Finished(printed, usage.ru_maxrss * 1024, seconds, usage.ru_utime + usage.ru_stime)


def watched(words: Sequence[object]) -> tuple[str, int]:
    """Run a program: what it prints, and the peak of its memory in bytes. Ends with its words when it fails."""
    try:
        done = finished(words)
    except ProgramFailed as error:
        raise SystemExit(str(error)) from None
    return done.printed, done.peak_bytes


def athena(command: str) -> tuple[dict, int]:
    """Run one athena-export command with --json: what it prints, and the peak of its memory in bytes."""
    printed, peak = watched([sys.executable, "-m", "toolchain", *command.split()[1:], "--json"])
    return json.loads(printed), peak
