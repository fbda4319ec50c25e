"""Small files of the artefacts: atomic writes and checked JSON reads. Standard library only."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from export.errors import InputError

MANIFEST = "athena.json"
_MAX_JSON = 256 << 20  # bytes


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file, flush to disk, rename. A failure leaves no partial file behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, atomically, with keys in the order given."""
    write_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def without_infinity(value: Any) -> Any:
    """JSON data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Read a JSON object. Raises InputError with the file's name when it is missing or not a JSON object."""
    try:
        if path.exists() and not path.is_file():  # a device or pipe might never end
            raise InputError(f"{path}: is not a regular file")
        if path.exists() and path.stat().st_size > _MAX_JSON:
            raise InputError(f"{path}: larger than {_MAX_JSON >> 20} MB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: this file is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return data
