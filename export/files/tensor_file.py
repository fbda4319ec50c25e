"""safetensors files in plain numpy: runtimes read adapters where no package for them is installed.

The form: 8 bytes, the length of a JSON header; the header, {name: {dtype, shape, data_offsets}}; then the bytes, tensor
behind tensor without a gap (https://github.com/huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.contract.errors import InputError
from export.files.access import read_bytes, write_bytes

_MAX_HEADER = 16 << 20
_MAX_TENSORS = 100_000
_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}
_NAMES = {np.dtype(kind): name for name, kind in _KINDS.items() if name != "BF16"}


def read_tensors(path: Path, limit: int, folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, read-only; BF16 comes as float32. limit: most bytes of the file.

    Raises InputError on a file that is missing, too large, a link out of the folder, or no whole safetensors file.
    """
    data = read_bytes(path, limit, folder)
    header, start = _header(path, data)
    found, spans = {}, []
    for name, entry in header.items():
        kind, shape, (begin, end) = _entry(path, name, entry, len(data) - start)
        array = np.frombuffer(data, np.dtype(_KINDS[kind]), math.prod(shape), start + begin).reshape(shape)
        if kind == "BF16":
            array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        found[name] = array
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise InputError(f"{path}: not a whole safetensors file (bytes that overlap or belong to no tensor)")
        at = end
    if at != len(data) - start:
        raise InputError(f"{path}: not a whole safetensors file (bytes that belong to no tensor)")
    return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file, atomically; data begins at a multiple of 64 bytes. Types are those that read_tensors knows."""
    header, parts, at = {}, [], 0
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + len(data)]
        }  # fmt: skip
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    write_bytes(path, b"".join((len(text).to_bytes(8, "little"), text, *parts)))


def _header(path: Path, data: bytes) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MAX_HEADER, len(data) - 8):
        raise InputError(f"{path}: not a whole safetensors file (its header is longer than the file)")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file (its header is no JSON: {error})") from None
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise InputError(f"{path}: not a safetensors file (its header is no object of at most {_MAX_TENSORS} tensors)")
    header.pop("__metadata__", None)
    return header, 8 + size


def _entry(path: Path, name: str, entry: Any, size: int) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Type, shape and place of a tensor, checked against the `size` bytes there are."""
    where = f"{path}: tensor {name[:200]!r}"
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"{where} has the type {str(kind)[:40]}; known are {', '.join(_KINDS)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise InputError(f"{where} has no shape")
    if not isinstance(place, list) or len(place) != 2 or not all(type(n) is int and 0 <= n <= size for n in place):
        raise InputError(f"{where} lies outside its file")
    begin, end = place
    if end - begin != math.prod(shape) * np.dtype(_KINDS[kind]).itemsize:
        raise InputError(f"{where} has {end - begin} bytes, which is not what its shape {shape} needs")
    return kind, tuple(shape), (begin, end)
