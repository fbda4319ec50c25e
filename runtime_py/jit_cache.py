"""Where compiled kernels are kept: in the user's cache, one folder for each state of the sources a file depends on.

Numba's own rule looks only at the file a function stands in, so a change in a function it calls would go unnoticed, and
an install the user cannot write to would have no cache. Here a file's kernels are found again as long as the file and
all that it imports (sources.py) are unchanged, whatever else is edited. Processor, signature and Numba version are in
Numba's own key.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import UserProvidedCacheLocator

from runtime_py.sources import ROOT, digest

_COVERED = tuple(ROOT / package for package in ("runtime_py", "toolchain"))
_MACHINE = ROOT / "runtime_py" / "engine" / "machine.py"
_KEPT = 4  # states of one file's sources that are kept: other versions and checkouts may be in use beside this one
_NUMBA_DEFAULT = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"


@cache
def cache_folder() -> Path:
    """`kernels` in ATHENA_CACHE_DIR, else in the user's cache folder, else (neither can be written) a temporary one."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = os.environ.get("ATHENA_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    for base in (Path(wanted) if wanted else home / "athena-export", Path(tempfile.gettempdir()) / "athena-export"):
        folder = base / "kernels"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="athena-kernels-"))


@cache
def kernel_folder(path: Path) -> Path:
    """The folder of a source file's kernels, which need not exist."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return cache_folder() / f"{module}-{digest(path)}"


def is_cold() -> bool:
    """Whether nothing has been compiled here yet by this version."""
    return not any(kernel_folder(_MACHINE).glob("*run_steps*.nbi"))


def _forget_old(folder: Path) -> None:
    """Remove the kernels of earlier states of a file, all but the newest."""
    stem = folder.name.rpartition("-")[0]
    try:
        earlier = [p for p in folder.parent.iterdir() if p.name.rpartition("-")[0] == stem and p != folder]
        earlier.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    except OSError:  # another process is doing the same
        return
    for place in earlier[_KEPT - 1 :]:
        shutil.rmtree(place, ignore_errors=True)


class AthenaCacheLocator(UserProvidedCacheLocator):
    """Numba's locator for the functions of this project; declines every other function."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._source = Path(py_file).resolve()
        self._cache_path = str(kernel_folder(self._source))

    def ensure_cache_path(self) -> None:
        fresh = not Path(self._cache_path).is_dir()
        super().ensure_cache_path()
        if fresh:
            _forget_old(Path(self._cache_path))

    def get_source_stamp(self) -> str:
        return digest(self._source)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        source = Path(py_file).resolve()
        covered = source.is_file() and any(source.is_relative_to(package) for package in _COVERED)
        return cls(py_func, py_file) if covered else None


def install() -> None:
    """Put the locator before Numba's own, unless the user has chosen locators."""
    if getattr(config, "CACHE_LOCATOR_CLASSES", None) == "":
        config.CACHE_LOCATOR_CLASSES = f"{__name__}.AthenaCacheLocator,{_NUMBA_DEFAULT}"  # type: ignore[attr-defined]
