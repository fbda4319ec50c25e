"""How much memory this process has taken, and how much is left for it."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np


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


def free_memory() -> int | None:
    """Bytes that can be used without swapping, by the machine and by the control group; None where neither says."""
    found = [left for left in (_available(), _left_in_group()) if left is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        memory = Path("/proc/meminfo").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in memory.split("\n") if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _left_in_group() -> int | None:
    """What limits of the container, service or scope leave, None where there are none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("\n")
        own = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    except (OSError, StopIteration, ValueError):
        own = "/"
    parts = [part for part in own.split("/") if part not in ("", "..")]
    groups = [Path("/sys/fs/cgroup", *parts[:count]) for count in range(len(parts) + 1)]
    return min((left for left in map(_left_in, groups) if left is not None), default=None)


def _left_in(group: Path) -> int | None:
    """What one group's limit leaves, None where it has none. Cached pages of files count as free."""
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        files = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text(encoding="ascii").split("\n")
            if line.startswith("inactive_file ")
        )
    except (OSError, StopIteration, ValueError):  # "max", another version of control groups, another system
        return None
    return max(limit - used + files, 0)


def held_bytes(arrays: Iterable[np.ndarray]) -> int:
    """Bytes that these arrays keep: of each the whole that it is a view of, once. A mapped file counts whole."""
    wholes: dict[int, int] = {}
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        wholes[id(array)] = array.nbytes
    return sum(wholes.values())


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, for each thread that has held some."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps less
        if trim is not None:
            trim(0)
