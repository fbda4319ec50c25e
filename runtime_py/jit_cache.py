"""Where compiled kernels are kept: one folder per state of this package's sources, in the user's cache.

Numba's own rule looks only at the file a function stands in, so a change in a function it calls would go unnoticed, and
an install the user cannot write to would have no cache. Processor, signature and Numba version are in Numba's own key.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import UserProvidedCacheLocator

_PACKAGE = Path(__file__).resolve().parent
_CONTRACT = _PACKAGE.parent / "export"
_NUMBA_DEFAULT = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"


@cache
def source_digest() -> str:
    """Hash of every source file that compiled code can come from."""
    digest = hashlib.sha256()
    for path in sorted([*_PACKAGE.rglob("*.py"), _CONTRACT / "packing.py", _CONTRACT / "contract.py"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """ATHENA_CACHE_DIR, else the user's cache folder, else (neither can be written) a temporary one."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = os.environ.get("ATHENA_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    for base in (Path(wanted) if wanted else home / "athena-export", Path(tempfile.gettempdir()) / "athena-export"):
        folder = base / f"kernels-{source_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="athena-kernels-"))


def is_cold() -> bool:
    """Whether nothing has been compiled here yet by this version."""
    return not any(cache_folder().glob("*run_steps*.nbi"))


class AthenaCacheLocator(UserProvidedCacheLocator):
    """Numba's locator for the functions of this package; declines every other function."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path = str(cache_folder())

    def get_source_stamp(self) -> str:
        return source_digest()

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        inside = Path(py_file).resolve().is_relative_to(_PACKAGE)
        return cls(py_func, py_file) if inside else None


def install() -> None:
    """Put the locator before Numba's own, unless the user has chosen locators."""
    if getattr(config, "CACHE_LOCATOR_CLASSES", None) == "":
        config.CACHE_LOCATOR_CLASSES = f"{__name__}.AthenaCacheLocator,{_NUMBA_DEFAULT}"  # type: ignore[attr-defined]
