"""`.onnx_adapter` files, from which onnxruntime (LoraAdapter) and onnxruntime-genai (Adapters) take a graph's inputs.

A FlatBuffer of onnxruntime's schema (onnxruntime/lora/adapter_format/adapter_schema.fbs), format version 1:

    table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8] (8-byte aligned); }
    table Adapter { format_version: int32; adapter_version: int32; model_version: int32; parameters: [Parameter]; }

Written front to back: offsets in a FlatBuffer point forward, but for those from a table to its own vtable.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

_FORMAT_VERSION = 1
_FLOAT = 1  # of TensorDataType, which is ONNX's
_IDENTIFIER = b"TORT"
_LARGEST = 2**31 - 64  # bytes of a FlatBuffer


def onnx_adapter(parameters: Mapping[str, np.ndarray]) -> bytes:
    """The file for float32 arrays by the names of a graph's inputs. Raises ValueError beyond 2 GB."""
    out = _Buffer()
    root = out.reference()
    out.data += _IDENTIFIER
    adapter = out.table((4, 8, 12, 16), 20)
    out.at(root, adapter)
    out.put("<i", adapter + 4, _FORMAT_VERSION)
    out.put("<i", adapter + 8, 1)
    out.put("<i", adapter + 12, 1)
    places = out.vector(len(parameters), 4)
    out.at(adapter + 16, places)
    for i, (name, array) in enumerate(parameters.items()):
        assert array.dtype == np.float32
        one = out.table((4, 8, 12, 16), 20)
        out.at(places + 4 + 4 * i, one)
        out.put("<i", one + 12, _FLOAT)
        out.at(one + 4, out.bytes(name.encode(), 1, b"\0"))
        out.at(one + 8, out.bytes(np.asarray(array.shape, "<i8").tobytes(), 8))
        out.at(one + 16, out.bytes(np.ascontiguousarray(array, "<f4").tobytes(), 1, align=8))
        if len(out.data) > _LARGEST:
            raise ValueError("an .onnx_adapter file holds 2 GB at most")
    return bytes(out.data)


class _Buffer:
    """Bytes that grow at their end."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self, align: int, behind: int = 0) -> None:
        """Zeros until what comes `behind` bytes later stands at a multiple of `align`."""
        self.data += bytes(-(len(self.data) + behind) % align)

    def put(self, form: str, place: int, value: int) -> None:
        struct.pack_into(form, self.data, place, value)

    def at(self, place: int, target: int) -> None:
        """Let the offset at `place` lead to `target`."""
        self.put("<I", place, target - place)

    def reference(self) -> int:
        """Room for an offset."""
        self.data += bytes(4)
        return len(self.data) - 4

    def table(self, fields: tuple[int, ...], size: int) -> int:
        """A table of `size` bytes with these places of fields behind its vtable; where it begins."""
        self.pad(4)
        vtable = len(self.data)
        self.data += struct.pack(f"<{2 + len(fields)}H", 4 + 2 * len(fields), size, *fields)
        self.pad(8)
        begin = len(self.data)
        self.data += bytes(size)
        self.put("<i", begin, begin - vtable)
        return begin

    def vector(self, count: int, size: int) -> int:
        """Room for a vector's elements behind its length; where that stands."""
        self.pad(4)
        begin = len(self.data)
        self.data += struct.pack("<I", count) + bytes(count * size)
        return begin

    def bytes(self, data: bytes, size: int, end: bytes = b"", align: int = 0) -> int:
        """A vector (or text, with its end) of elements of `size` bytes; where its length stands."""
        self.pad(max(align or size, 4), 4)
        begin = len(self.data)
        self.data += struct.pack("<I", len(data) // size) + data + end
        return begin
