"""Mapped files in huge pages.

Linux keeps a file in huge pages where its file system can (XFS, ext4 since 6.16) and the mapping asks for them before
anything of it is read; it is then read as fast as memory. What lies in small pages already stays there. Other systems,
and kernels without huge pages, map it as always.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


def mapped_bytes(path: Path, size: int, huge: bool = True) -> np.ndarray:
    """The first `size` bytes of a file, uint8, read only. Raises OSError, ValueError and OverflowError, as memmap.

    huge: all of it will be read. A huge page has what lies beside a wanted part, too.
    """
    found = np.memmap(path, dtype=np.uint8, mode="r", shape=(size,))
    file: mmap.mmap = found._mmap  # type: ignore[attr-defined]
    if huge and _HUGE is not None:
        with suppress(OSError):  # a kernel without huge pages
            file.madvise(_HUGE)
    return found
