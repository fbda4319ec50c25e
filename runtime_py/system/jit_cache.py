"""Where compiled kernels are kept: in the user's cache, one folder for each state of the sources a file depends on.

Numba's own rule looks only at the file a function stands in, so a change in a function it calls would go unnoticed, and
an install the user cannot write to would have no cache. Here a file's kernels are found again as long as the file and
all that it imports (sources.py) are unchanged, whatever else is edited. Processor, signature and Numba version are in
Numba's own key.

The files are pickles of machine code, so they are read only from a folder that nobody else can write to
(export/files/cache_folder.py), and only if they are whole. Where there is no such folder, or no room, kernels are
compiled at each start, and a line on stderr says why.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config, dispatcher, event
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    NullCache,
    UserProvidedCacheLocator,
)

from export.files.access import replacing
from export.files.cache_folder import NoCache, private_cache
from runtime_py.system.compilation import announce
from runtime_py.system.sources import ROOT, digest

_COVERED = tuple(ROOT / package for package in ("runtime_py", "toolchain"))
_KEPT = 4  # states of one file's sources that are kept: other versions and checkouts may be in use beside this one
_GONE_DAYS = 30  # after which kernels of a file that this version does not have are removed
_DIGEST = hashlib.sha256


@cache
def cache_folder() -> Path | None:
    """The folder of all kernels; None, and once a line on stderr, where they cannot be kept."""
    try:
        return private_cache("kernels")
    except NoCache as error:
        _tell(str(error))
        return None


@cache
def _tell(why: str) -> None:
    print(f"[compiled kernels are not kept: {why}]", file=sys.stderr)


@cache
def kernel_folder(path: Path) -> Path | None:
    """The folder of a source file's kernels, which need not exist; None where they are not kept."""
    module, folder = ".".join(path.relative_to(ROOT).with_suffix("").parts), cache_folder()
    return folder / f"{module}-{digest(path)}" if folder is not None else None


class _Compilation(event.Listener):
    """Says that something which is not on disk begins to be compiled."""

    def on_start(self, event: Any) -> None:
        announce()

    def on_end(self, event: Any) -> None:
        """Nothing: how long it took is seen."""


@cache
def listen() -> None:
    """Have what Numba compiles in this process announced (compilation.py)."""
    event.register("numba:compile", _Compilation())


def _forget_old(folder: Path) -> None:
    """Remove the kernels of earlier states of a file, all but the newest, and those of files that are long gone."""
    stem = folder.name.rpartition("-")[0]
    try:
        others = [(p, p.name.rpartition("-")[0], p.stat().st_mtime) for p in folder.parent.iterdir() if p != folder]
    except OSError:  # another process is doing the same
        return
    earlier = sorted((written, p) for p, module, written in others if module == stem)
    before = time.time() - 86400 * _GONE_DAYS
    gone = [p for p, module, written in others if written < before and not _source(module).is_file()]
    for place in (*(p for _, p in earlier[: -(_KEPT - 1)]), *gone):
        shutil.rmtree(place, ignore_errors=True)


def _source(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


class AthenaCacheLocator(UserProvidedCacheLocator):
    """Numba's locator for the functions of this project; declines every other function."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._source = Path(py_file).resolve()
        self._cache_path = str(kernel_folder(self._source))

    def ensure_cache_path(self) -> None:
        fresh = not os.path.isdir(self._cache_path)
        os.makedirs(self._cache_path, mode=0o700, exist_ok=True)
        if fresh:
            _forget_old(Path(self._cache_path))

    def get_source_stamp(self) -> str:
        return digest(self._source)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if _is_ours(py_file) else None


def _is_ours(py_file: str) -> bool:
    source = Path(py_file).resolve()
    return source.is_file() and any(source.is_relative_to(package) for package in _COVERED)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (AthenaCacheLocator,)  # type: ignore[assignment]


class WholeFiles(IndexDataCacheFile):
    """Numba's files, each behind a digest of its content: what a power cut has left of one is never unpickled.

    The data also holds its key: two processes that compile at once give two signatures the same file name.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[1] if found is not None and found[0] == key else None

    def _load_index(self) -> dict[Any, str]:
        content = _whole(self._index_path)
        if content is None:
            return {}
        file = io.BytesIO(content)
        if pickle.load(file) != numba.__version__:
            return {}
        stamp, overloads = pickle.load(file)
        return overloads if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        content = _whole(self._data_path(name))
        return None if content is None else pickle.loads(content)

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with replacing(Path(filepath), durable=False) as temporary:
            temporary.write_bytes(_DIGEST(content.getvalue()).digest() + content.getvalue())


def _whole(path: str) -> bytes | None:
    """What was written there; None if it is not there, cannot be read or is damaged."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    size = _DIGEST().digest_size
    return data[size:] if _DIGEST(data[size:]).digest() == data[:size] else None


class KernelCache(FunctionCache):
    """Numba's cache of one function; what cannot be loaded is compiled, what cannot be kept is not kept."""

    _impl_class = _Implementation

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        stamp, base = self._impl.locator.get_source_stamp(), self._impl.filename_base
        self._cache_file = WholeFiles(self._cache_path, base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling raises anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except (OSError, ValueError) as error:  # no room, or a name in the cache is taken by something else
            _tell(str(getattr(error, "strerror", None) or error))


def cache_of(py_func: Any) -> Any:
    """The cache that Numba is to use for a function with `cache=True`."""
    if getattr(config, "CACHE_LOCATOR_CLASSES", "") or not _is_ours(py_func.__code__.co_filename):
        return FunctionCache(py_func)  # the user's environment names the places, or it is another's function
    return KernelCache(py_func) if cache_folder() is not None else NullCache()


def install() -> None:
    """Let Numba keep the kernels of this project here, and say when it compiles one."""
    listen()
    dispatcher.FunctionCache = cache_of  # type: ignore[attr-defined]
