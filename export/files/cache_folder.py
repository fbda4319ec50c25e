"""Folders for what is kept between runs and trusted like our own code: only this user can write into them.

Compiled kernels are pickles, object files become programs: whoever can write where they are kept can run code as the
user. So a folder counts only if it and all folders above it belong to the user or to root, and nobody else can write
there; a shared temporary folder and the current one are never used.
"""

from __future__ import annotations

import os
import shutil
import stat
from functools import cache
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NoCache(Exception):
    """There is no place to keep anything; says why, in one line."""


@cache
def private_cache(name: str) -> Path:
    """The private folder `name` in ATHENA_CACHE_DIR (or NUMBA_CACHE_DIR), else in the user's own cache folder.

    Raises NoCache when there is none, when it cannot be written, or when others could write into it.
    """
    try:
        return private_folder(_base() / name)
    except OSError as error:
        raise NoCache(f"{error.filename or name}: {error.strerror or error}") from None


def _base() -> Path:
    for variable in ("ATHENA_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            return _absolute(os.environ[variable], variable)
    wanted = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(wanted):  # the standard: another one is to be ignored
        return Path(wanted) / "athena-export"
    try:
        return _absolute(str(Path.home()), "the home folder") / ".cache" / "athena-export"
    except RuntimeError:  # a user without an entry in passwd, and no HOME
        raise NoCache("there is no home folder; ATHENA_CACHE_DIR can name another one") from None


def _absolute(path: str, name: str) -> Path:
    if not os.path.isabs(path):  # another program's folder could be the current one
        raise NoCache(f"{name} must be an absolute path, not {path!r}")
    return Path(path)


def private_folder(path: Path) -> Path:
    """Make the folder, or check it; its path without links. What others could have put there is removed.

    Raises NoCache when others can change it or a folder above it, OSError when it cannot be made or written.
    """
    if not hasattr(os, "geteuid"):  # Windows: the user's folders are private
        path.mkdir(parents=True, exist_ok=True)
        return path
    _check_links(path)
    place = Path(os.path.realpath(path))
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    for folder in reversed(place.parents):
        _check_owner(folder, folder.lstat())
        if folder.lstat().st_mode & _OTHERS and not folder.lstat().st_mode & stat.S_ISVTX:
            raise NoCache(f"{folder}: others can write into it")
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NoCache(f"{place}: is not a folder")
    if found.st_uid != os.geteuid():
        raise NoCache(f"{place}: belongs to another user")
    if stat.S_IMODE(found.st_mode) != 0o700:
        place.chmod(0o700)
    if found.st_mode & _OTHERS:
        _empty(place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise NoCache(f"{place}: cannot be written")
    return place


def _check_links(path: Path) -> None:
    """A link that another user made could point the cache anywhere, and elsewhere tomorrow."""
    for folder in (path, *path.parents):
        if folder.is_symlink():
            _check_owner(folder, folder.lstat())


def _check_owner(folder: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise NoCache(f"{folder}: belongs to another user")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
