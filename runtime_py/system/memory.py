"""How much memory this process has taken."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path


def peak_rss() -> int:
    """Most memory this process has had resident, bytes.

    Linux's getrusage also counts the parent before exec, so a small child of a large process would look large there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").split("\n"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, for each thread that has held some."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps less
        if trim is not None:
            trim(0)
