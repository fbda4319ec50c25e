"""Tensors of a model file, in it or in a file beside it: each is checked before a byte of it is touched."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from export.artefacts.onnx_file.records import TensorRecord
from export.artefacts.onnx_file.types import dtype_of, is_common
from export.contract.errors import InputError
from export.files.access import checked_path, open_file
from export.files.mapping import mapped_bytes

_MAX_ELEMENTS = 2**40
_MAX_DIMENSIONS = 32  # what every NumPy takes
_READ_BYTES = 1 << 26


@dataclass(frozen=True)
class External:
    """A tensor that another file holds."""

    where: str
    location: str  # a plain file name
    offset: int
    length: int  # bytes
    dtype: np.dtype
    shape: tuple[int, ...]

    def of(self, files: Mapping[str, np.ndarray]) -> np.ndarray:
        part = files[self.location][self.offset : self.offset + self.length]
        if self.offset % self.dtype.itemsize:
            part = part.copy()  # an unaligned tensor cannot be viewed in place
        try:
            return part.view(self.dtype).reshape(self.shape)
        except (TypeError, ValueError) as error:  # too many dimensions; text, which has no fixed size
            raise InputError(f"{self.where} cannot be read ({error})") from None


def _kind(tensor: TensorRecord) -> tuple[str, np.dtype, tuple[int, ...]]:
    """How messages call a tensor, its type and its shape. Raises InputError when it has none."""
    where, shape = f"model.onnx: tensor {tensor.name}", tensor.dims
    try:
        dtype = dtype_of(tensor.data_type)
    except (KeyError, TypeError):
        raise InputError(f"{where} has an unknown element type {tensor.data_type}") from None
    elements = math.prod(shape)
    if len(shape) > _MAX_DIMENSIONS or any(not 0 <= d <= _MAX_ELEMENTS for d in shape) or elements > _MAX_ELEMENTS:
        raise InputError(f"{where} has an impossible shape {list(shape)}")
    return where, dtype, shape


def inline_tensor(tensor: TensorRecord) -> np.ndarray:
    where, dtype, shape = _kind(tensor)
    try:
        if tensor.raw and is_common(tensor.data_type) and sys.byteorder == "little":
            array = np.frombuffer(bytes(tensor.raw), dtype).reshape(shape)
        else:
            from export.artefacts.onnx_file import by_onnx

            array = by_onnx.array_of(tensor.source)
    except Exception as error:
        raise InputError(f"{where} cannot be read ({error})") from None
    array.setflags(write=False)
    return array


def external_tensor(tensor: TensorRecord, entries: Mapping[str, str]) -> External:
    where, dtype, shape = _kind(tensor)
    location = entries.get("location", "")
    if not location or "\0" in location or Path(location).name != location or location in (".", ".."):
        raise InputError(
            f"{where}: external data location {location!r} is refused; only a plain file name in the folder is allowed"
        )
    needed = math.prod(shape) * dtype.itemsize
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", needed))
    except ValueError:
        raise InputError(f"{where}: offset and length of external data must be whole numbers") from None
    if dtype.hasobject or length != needed:
        raise InputError(f"{where}: external data has {length} bytes, its shape needs {needed}")
    if not 0 <= offset < 2**62:
        raise InputError(f"{where}: external data lies outside its file ({offset}+{length} bytes)")
    return External(where, location, offset, length, dtype, shape)


def open_files(
    folder: Path, sizes: Mapping[str, int], mapped: bool | Callable[[int], bool], huge: bool
) -> dict[str, np.ndarray]:
    """The first bytes of each file, uint8, as many as the tensors need."""
    for name, size in sizes.items():
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: this file is missing, model.onnx keeps its weights there")
        with open_file(folder / name, folder=folder) as file:
            there = file.seek(0, 2)
        if size > there:
            raise InputError(f"{folder / name}: external data lies outside its file ({size} of {there} bytes)")
    keep = mapped(sum(sizes.values())) if callable(mapped) else mapped
    try:
        read = partial(_map, huge=huge) if keep else _read
        return {name: read(folder, name, size) for name, size in sizes.items()}
    except MemoryError:
        raise InputError(f"{folder}: the weights need more memory than there is") from None


def _map(folder: Path, name: str, size: int, huge: bool) -> np.ndarray:
    if not size:
        return np.empty(0, np.uint8)
    try:
        return mapped_bytes(checked_path(folder / name, folder=folder), size, huge)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / name}: cannot be mapped ({error})") from None


def _read(folder: Path, name: str, size: int) -> np.ndarray:
    """In memory. Large arrays get huge pages where the system has them, which a mapped file never does."""
    try:
        data = np.empty(size, np.uint8)
    except ValueError:  # beyond what a process can address
        raise MemoryError from None
    with open_file(folder / name, folder=folder) as file:
        view, done = memoryview(data.data), 0
        while done < size:
            count = file.readinto(view[done : done + _READ_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise InputError(f"{folder / name}: ended after {done} of {size} bytes")
            done += count
    data.setflags(write=False)
    return data
