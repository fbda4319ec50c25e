"""How an output folder takes the place of an earlier one: what may be replaced, and in one step where the system can.

A folder is replaced only if it is empty or was made by this program, and if it is not, holds not and lies not in what
the run reads. Checked before the work; a place that could not be replaced at the end is refused at the beginning.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from export.contract.errors import InputError
from export.files.access import MANIFEST, SHRUNK, flush, read_json

_AT_FDCWD, _EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def output_folder(output: Path, force: bool, inputs: Iterable[Path] = ()) -> Path:
    """Where the folder `output` really is: itself, or what a link leads to.

    inputs: files and folders that the run reads. Raises InputError when `output` cannot be written or replaced.
    """
    place = Path(os.path.realpath(output))
    _check_place(output, place)
    for path in inputs:
        _check_apart(output, place, path)
    refuse_existing(place, force)
    return place


def _check_place(output: Path, place: Path) -> None:
    if place.parent == place:
        raise InputError(f"{output}: is the root folder; choose another one")
    if place.exists() and not place.is_dir():
        raise InputError(f"{output}: is a file; an output folder was expected")
    for name, folder in (("current", os.curdir), ("home", os.path.expanduser("~"))):
        real = Path(os.path.realpath(folder))
        if _same(place, real, *real.parents):
            raise InputError(f"{output}: is or holds the {name} folder; choose another one")
    if os.path.ismount(place):
        raise InputError(f"{output}: a file system is mounted there, which cannot be replaced; choose a folder in it")
    nearest = next(folder for folder in place.parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest}: cannot be written")


def _check_apart(output: Path, place: Path, path: Path) -> None:
    real = Path(os.path.realpath(path))
    if _same(place, real):
        raise InputError(f"{output}: is {path}, which this run reads; choose another folder")
    if _same(place, *real.parents):
        raise InputError(f"{output}: holds {path}, which this run reads; choose another folder")
    if not real.is_file() and _same(real, *place.parents):
        raise InputError(f"{output}: lies in {path}, which this run reads; choose another folder")


def _same(place: Path, *others: Path) -> bool:
    """Whether one of the others is the same file or folder, whatever its name."""
    known = place.exists()
    return any(other == place or (known and other.exists() and os.path.samefile(place, other)) for other in others)


def refuse_existing(destination: Path, force: bool) -> None:
    """Raise InputError when `destination` is a file, or a non-empty folder and `force` is off or it is not ours."""
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination}: is a file; an output folder was expected")
    if not destination.exists() or not any(destination.iterdir()):
        return
    if not force:
        raise InputError(f"{destination}: exists and is not empty; choose another folder or pass --force to replace it")
    refuse_foreign(destination)


def refuse_foreign(folder: Path) -> None:
    """Raise InputError when this program did not make the folder, so that it must not delete it."""
    if not is_ours(folder):
        raise InputError(
            f"{folder}: holds files and no {MANIFEST} of ours, so it is not replaced; choose another folder"
        )
    device = folder.stat().st_dev
    for root, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(root, name)
            if inner.lstat().st_dev != device or os.path.ismount(inner):
                raise InputError(f"{inner}: a file system is mounted there, so {folder} is not replaced")


def is_ours(folder: Path) -> bool:
    """Whether the folder is a quantized checkpoint, a model folder or a smaller model of this program."""
    return any(_is_manifest(folder / name) for name in (MANIFEST, SHRUNK))


def _is_manifest(path: Path) -> bool:
    try:
        manifest = read_json(path)
    except InputError:
        return False
    return type(manifest.get("format_version")) is int and isinstance(manifest.get("settings"), dict)


def building_folder(destination: Path) -> Path:
    """The hidden folder beside `destination` in which its content is made."""
    return destination.with_name(f".{destination.name}.building")


def _old_folder(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def recover(destination: Path) -> None:
    """Put back the folder that an interrupted replacement had moved aside. The caller holds the lock."""
    old = _old_folder(destination)
    if os.path.lexists(destination) or old.is_symlink() or not old.is_dir() or not is_ours(old):
        return
    if not hasattr(os, "geteuid") or old.stat().st_uid == os.geteuid():
        old.rename(destination)


def install_folder(built: Path, destination: Path, force: bool) -> None:
    """Move a finished folder into place. A non-empty destination is replaced only with `force`, and only one of ours.

    Both change places in one step where the system can; else the old one is moved aside, and recover() puts it back
    if the process dies before its successor is in place. Raises InputError as refuse_existing does.
    """
    refuse_existing(destination, force)
    _flush(built)
    if not destination.exists() or (os.name == "posix" and not any(destination.iterdir())):
        os.rename(built, destination)
    elif _exchange(built, destination):
        shutil.rmtree(built, ignore_errors=True)
    else:
        _move_aside(built, destination)
    flush(destination.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names at once; False where the system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):  # the kernel, the file system, a sandbox
        return False
    raise OSError(number, os.strerror(number), str(other))


def _move_aside(built: Path, destination: Path) -> None:
    old = _old_folder(destination)
    if os.path.lexists(old):
        refuse_foreign(old)  # left by a replacement that had its successor in place
        shutil.rmtree(old)
    try:
        os.rename(destination, old)
        os.rename(built, destination)
    except BaseException as error:
        if not destination.exists():  # after Ctrl-C the successor counts: it is complete
            os.rename(old if isinstance(error, OSError) else built, destination)
        raise
    finally:
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Put every file of a new folder on the disk, so that a power cut leaves no half of it under its name."""
    for root, _, names in os.walk(folder):
        for name in names:
            flush(Path(root, name))
        flush(Path(root))
