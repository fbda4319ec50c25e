"""Targets for `athena-export lower`, one TOML file each: the passes they need and their settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent
_KEYS: dict[str, type] = {
    "summary": str,
    "passes": list,
    "share_cache": bool,
    "library": bool,
    "nbits": dict,
    "runtime": dict,
}
_TABLES: dict[str, dict[str, type]] = {
    "nbits": {"block_size": int, "accuracy_level": int},
    "runtime": {"threads": int, "mmap": bool},
}


def names() -> list[str]:
    """The targets there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def summaries() -> dict[str, str]:
    """One line on each target, by name."""
    return {name: open_lowering(name)["summary"] for name in names()}


def open_lowering(name: str) -> dict[str, Any]:
    """The data of a target by name, or of a file ending in .toml. Raises ValueError naming what is wrong."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise ValueError(f"--target {name!r} is unknown; there are {', '.join(names())}, or a file ending in .toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    _check(data, _KEYS, str(path))
    for table, keys in _TABLES.items():
        _check(data.get(table, {}), keys, f"{path}: {table}")
    if "summary" not in data or not all(isinstance(name, str) for name in data.get("passes", [])):
        raise ValueError(f"{path}: needs a summary, and passes as a list of names")
    return data


def _check(data: dict[str, Any], keys: dict[str, type], where: str) -> None:
    for name, value in data.items():
        if name not in keys:
            raise ValueError(f"{where}: {name} is unknown; known are {', '.join(keys)}")
        if type(value) is not keys[name]:
            raise ValueError(f"{where}: {name} must be of type {keys[name].__name__}, not {value!r}")
