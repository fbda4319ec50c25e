"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), read without trusting it.

The readers of the packages `gguf` and `transformers` believe every count, so a header goes through here before they see
it: afterwards every length is inside the file, every tensor's bytes are there, every name is text and there once.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import checked_path

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LEAST = 24  # bytes: magic, version, number of tensors and of keys
_MOST_KEYS = 1 << 16
_MOST_ENTRIES = 1 << 22  # of all arrays together: readers make an object of each; large vocabularies have 1 million
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1 << 10
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor is stored, and how."""

    path: Path
    type: str  # as ggml names it: F32, F16, BF16, Q4_0, Q6_K, ...
    shape: tuple[int, ...]  # the last axis is the one that lies together
    offset: int  # of its first byte in the file
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What one file says before its data."""

    path: Path
    values: dict[str, Any]  # by key, without arrays
    lengths: dict[str, int]  # of arrays, by key
    tensors: dict[str, GgufTensor]
    stored: dict[str, bytes] = field(repr=False)  # by key, the key and its value as the file has them

    def metadata(self, without_vocabulary: bool = False) -> bytes:
        """A GGUF file of these keys and no tensor; `without_vocabulary`: and without the tokenizer's arrays."""
        left = [k for k in self.stored if not (without_vocabulary and k in self.lengths and k.startswith("tokenizer."))]
        return MAGIC + struct.pack("<IQQ", _VERSIONS[-1], 0, len(left)) + b"".join(self.stored[k] for k in left)


def read_header(path: Path) -> GgufHeader:
    """Raises InputError, naming the file, for anything but a whole GGUF file of version 2 or 3, little-endian."""
    checked_path(path)
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) < _LEAST or (file.seek(0), file.read(4))[1] != MAGIC:
                raise InputError(f"{path}: is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).header()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Cursor:
    """A place in the file; every step forward stays inside."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._entries = path, data, 4, 0

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._path}: {what}")

    def header(self) -> GgufHeader:
        version, tensors, keys = (self._scalar(form) for form in ("<I", "<Q", "<Q"))
        if version not in _VERSIONS:
            kind = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
            raise self._wrong(f"is a GGUF file {kind}; versions 2 and 3, little-endian, are read")
        if keys > _MOST_KEYS:
            raise self._wrong(f"says that it has {keys} metadata keys; at most {_MOST_KEYS} are read")
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        stored: dict[str, bytes] = {}
        for _ in range(keys):
            start = self._at
            key = self._name("metadata key")
            if key in values or key in lengths:
                raise self._wrong(f"metadata key {key} is there twice")
            kind = self._scalar("<I")
            if kind == _ARRAY:
                lengths[key] = self._skip_array(key)
            else:
                values[key] = self._string(key) if kind == _STRING else self._scalar(self._form(kind, key))
            stored[key] = self._data[start : self._at]
        found = self._tensors(tensors, values.get("general.alignment", 32))
        return GgufHeader(self._path, values, lengths, found, stored)

    def _take(self, size: int, what: str) -> int:
        """Go past `size` bytes; the offset where they begin."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise self._wrong(f"ends in the middle of {what}; it is cut off or damaged")
        return start

    def _scalar(self, form: str) -> Any:
        start = self._take(struct.calcsize(form), "its header")
        return struct.unpack_from(form, self._data, start)[0]

    def _form(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise self._wrong(f"metadata {key} is of an unknown type ({kind})")
        return _SCALARS[kind]

    def _string(self, what: str) -> str:
        length = self._scalar("<Q")
        start = self._take(length, what)
        try:
            return self._data[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._wrong(f"{what} is not text in UTF-8") from None

    def _name(self, what: str) -> str:
        name = self._string(f"a {what}")
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise self._wrong(f"a {what} is empty, too long or not printable")
        return name

    def _skip_array(self, key: str) -> int:
        kind, count = self._scalar("<I"), self._scalar("<Q")
        self._entries += count
        if self._entries > _MOST_ENTRIES:
            raise self._wrong(f"metadata {key} has {count} entries; at most {_MOST_ENTRIES} in all are read")
        if kind == _ARRAY:
            raise self._wrong(f"metadata {key} is an array of arrays")
        if kind != _STRING:
            self._take(count * struct.calcsize(self._form(kind, key)), f"metadata {key}")
            return count
        for _ in range(count):
            self._take(self._scalar("<Q"), f"metadata {key}")
        return count

    def _tensors(self, count: int, alignment: Any) -> dict[str, GgufTensor]:
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._wrong(f"general.alignment must be a power of two, not {alignment!r}")
        table = []
        for _ in range(count):  # ends with the file at the latest: an entry has 24 bytes or more
            name = self._name("tensor's name")
            axes = self._scalar("<I")
            if not 1 <= axes <= _MOST_DIMENSIONS:
                raise self._wrong(f"tensor {name} has {axes} dimensions; 1 to {_MOST_DIMENSIONS} are read")
            shape = tuple(reversed([self._scalar("<Q") for _ in range(axes)]))
            table.append((name, shape, self._scalar("<I"), self._scalar("<Q")))
        start = -(-self._at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in table:
            if name in found:
                raise self._wrong(f"tensor {name} is there twice")
            found[name] = self._tensor(name, shape, kind, start + offset, alignment)
        return found

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            title = GGMLQuantizationType(kind)
            block, size = GGML_QUANT_SIZES[title]
        except (ValueError, KeyError):
            raise self._wrong(f"tensor {name} is of a type that the package gguf does not know ({kind})") from None
        if 0 in shape or shape[-1] % block:
            raise self._wrong(
                f"tensor {name} has shape {list(shape)}, which {title.name} (blocks of {block}) cannot have"
            )
        if offset % alignment:
            raise self._wrong(f"tensor {name} does not begin at a multiple of {alignment} bytes")
        length = size
        for axis in (*shape[:-1], shape[-1] // block):
            length *= axis
        if offset + length > len(self._data):
            raise self._wrong(f"ends before the data of tensor {name}; it is cut off or damaged")
        return GgufTensor(self._path, title.name, shape, offset, length)
