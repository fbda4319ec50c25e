"""One process at a time works on an output folder.

The filelock package is not used, because it locks whatever has the name: in 4.3.1 another file's hard link, a pipe or
somebody's notes, and in 3.15, which torch and huggingface_hub allow, it empties them and a symbolic link's target. Nor
does it say which process holds a lock or remove the file, so most of what is here would be needed around it, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.contract.errors import InputError

_LONGEST = 32  # bytes of a process number and a line break


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, a file beside it, while the body runs. The system releases it if the process dies.

    Raises InputError when another process holds it, when the place cannot be written or has no locks, or when something
    else than a lock of ours has the file's name: a link would be followed, and what is in a file would be lost.
    """
    path = folder.with_name(f".{folder.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise InputError(f"{path}: is no lock of ours; remove it") from None
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from None
    try:
        if not _is_lock(handle):
            raise InputError(f"{path}: is no lock of ours; remove it")
        # A file that its last owner has removed meanwhile locks nothing: whoever comes next makes a new one.
        if not _try_lock(handle, path.parent) or not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
            owner = _content(handle).decode("ascii", "replace").strip()
            raise InputError(
                f"{folder}: another athena-export{f' (process {owner})' if owner else ''} is working on it"
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while still locked: who waits for this name gets a new file
    finally:
        os.close(handle)


def _is_lock(handle: int) -> bool:
    """Whether the open file holds nothing but a process number, and has no other name."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > _LONGEST:
        return False
    content = _content(handle).strip()
    return not content or content.isdigit()


def _content(handle: int) -> bytes:
    return os.pread(handle, _LONGEST, 0) if hasattr(os, "pread") else b""


def _try_lock(handle: int, place: Path) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no flock
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        raise InputError(f"{place}: its file system has no locks ({error.strerror})") from None
    return True
