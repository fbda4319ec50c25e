"""How files are opened and written: one way each. Standard library only.

What is read may be hostile: only regular files, within a limit by kind, and inside their folder. A link may lead to
another place in the folder, or to the blobs of the Hugging Face cache that the folder is a snapshot of. What is written
appears whole, under a name that nobody can have prepared.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from export.contract.errors import InputError

MANIFEST = "athena.json"
SHRUNK = "shrink.json"  # of a Hugging Face folder that `shrink` made
MAX_JSON = 64 << 20  # bytes; the largest published tokenizer.json have 35 million
MAX_TEMPLATE = 1 << 20
MAX_TEXT = 128 << 20
_MAX_CONTAINERS = 2_000_000  # lists and objects of a JSON file; a tokenizer with a million merges has one for each
_TEMPORARY = ".tmp"
# No room: of the disk, of the user's quota, of a file's size (ulimit -f).
FULL = frozenset({errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])})


def expanded(name: str) -> Path:
    """The path with ~ replaced, where there is such a user."""
    return Path(os.path.expanduser(name))


def is_temporary(name: str) -> bool:
    """Whether a file is one that replacing() had begun when its process was killed."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def checked_path(path: Path, limit: int | None = None, folder: Path | None = None) -> Path:
    """The path, without links, of a file that another library is to open.

    folder: the file and what it links to must lie in it, see open_file. Raises InputError as open_file does.
    """
    with open_file(path, limit, folder):
        return Path(os.path.realpath(path))


@contextmanager
def open_file(path: Path, limit: int | None = None, folder: Path | None = None) -> Iterator[IO[bytes]]:
    """The file, open for reading. limit: most bytes it may have.

    folder: the model folder that it is read from, which a link must not lead out of; None: the user named the file.
    Raises InputError, which names the file, when it is missing, no regular file (a pipe or device might never end), too
    large, behind a link out of the folder, or cannot be read.
    """
    try:
        real = os.path.realpath(path)
        if folder is not None and not _inside(Path(real), folder):
            kind = "" if not os.path.exists(real) or os.path.isfile(real) else ", to what is not a regular file"
            raise InputError(f"{path}: is a link out of the folder{kind}; put the file itself there")
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(f"{path}: this file is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is not a regular file")
        if limit is not None and found.st_size > limit:
            raise InputError(f"{path}: larger than {limit >> 20} MB")
        with open(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def _inside(real: Path, folder: Path) -> bool:
    root = Path(os.path.realpath(folder))
    if real.is_relative_to(root):
        return True
    snapshots = next((place for place in (root, *root.parents) if place.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")


def read_bytes(path: Path, limit: int, folder: Path | None = None) -> bytes:
    """The whole file. Raises InputError as open_file does."""
    with open_file(path, limit, folder) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except MemoryError:
            raise InputError(f"{path}: needs more memory than there is") from None
    if len(data) > limit:  # it grew, or does not tell its size
        raise InputError(f"{path}: larger than {limit >> 20} MB")
    return data


def read_text(path: Path, limit: int = MAX_TEXT, folder: Path | None = None) -> str:
    """A UTF-8 text. Raises InputError as open_file does, and on other bytes."""
    return as_text(path, read_bytes(path, limit, folder))


def as_text(path: Path, data: bytes) -> str:
    """The text that a file holds. Raises InputError where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is") from None


def read_json(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """Read a JSON object of a model folder (`folder`; None: the one that the file stands in).

    Raises InputError with the file's name when it is missing or not a JSON object.
    """
    data = read_json_value(path, path.parent if folder is None else folder)
    if not isinstance(data, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return data


def read_json_value(path: Path, folder: Path | None) -> Any:
    """Read a JSON file; folder: as in open_file. Raises InputError when it is missing, not JSON or far too large."""
    data = read_bytes(path, MAX_JSON, folder)
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS:
        raise InputError(f"{path}: has more than {_MAX_CONTAINERS:,} lists and objects")
    text = as_text(path, data)
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except UnicodeEncodeError:
        raise InputError(f"{path}: not valid JSON (half of a surrogate pair)") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is") from None


def copy_file(source: Path, destination: Path, limit: int, folder: Path) -> None:
    """Copy a small file of a model folder. Raises InputError as open_file does."""
    write_bytes(destination, read_bytes(source, limit, folder))


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """An empty file for the body to fill, which takes the place of `path` when that ends without an exception.

    Else nothing is left of it. durable: it is on the disk before it takes the place. Raises InputError when something
    else than a regular file is in the place; a link is replaced, not followed.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file")
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_TEMPORARY}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in FULL:
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. A failure leaves no partial file behind. Raises InputError as replacing does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, atomically, with keys in the order given."""
    write_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(errors="replace"))


def without_infinity(value: Any) -> Any:
    """JSON data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
