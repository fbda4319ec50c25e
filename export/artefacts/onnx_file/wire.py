"""The encoding of protocol buffers (protobuf.dev/programming-guides/encoding): a message as its fields."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

NUMBER, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # how a field is encoded
_MOST = 1 << 64


class Unclear(Exception):
    """What stands there is damaged, or means what only the onnx package knows."""


def key(field: int, kind: int) -> int:
    """What stands before a field's value."""
    return field << 3 | kind


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Every field's key and value: an int that is not signed, or the bytes. Raises Unclear."""
    place, end = 0, len(data)
    try:
        while place < end:
            found, place = _number(data, place)
            kind = found & 7
            if not found >> 3:
                raise Unclear
            if kind == NUMBER:
                value, place = _number(data, place)
                yield found, value
                continue
            if kind == BYTES:
                size, place = _number(data, place)
            elif kind in (FOUR, EIGHT):
                size = 4 if kind == FOUR else 8
            else:  # groups, which ONNX has none of
                raise Unclear
            if size > end - place:
                raise Unclear
            yield found, data[place : place + size]
            place += size
    except IndexError:
        raise Unclear from None


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of 7 bits, lowest first, and the place behind it."""
    part = data[place]
    if part < 128:
        return part, place + 1
    value, shift = part & 127, 7
    while True:
        place += 1
        part = data[place]
        value |= (part & 127) << shift
        if part < 128:
            break
        shift += 7
        if shift > 63:
            raise Unclear
    if value >= _MOST:
        raise Unclear
    return value, place + 1


def signed(value: int) -> int:
    """An int64."""
    return value - _MOST if value >= _MOST >> 1 else value


def small(value: int, most: int = 2**31 - 1) -> int:
    """An int32, or a number of an enumeration, of those up to `most`. Raises Unclear for another."""
    if value > most:
        raise Unclear
    return value


def numbers(data: memoryview) -> Iterator[int]:
    """int64 numbers that stand one after another in one field. Raises Unclear."""
    place = 0
    try:
        while place < len(data):
            value, place = _number(data, place)
            yield signed(value)
    except IndexError:
        raise Unclear from None


def floats(data: memoryview) -> tuple[float, ...]:
    """float32 numbers, one or more. Raises Unclear."""
    if len(data) % 4:
        raise Unclear
    return struct.unpack(f"<{len(data) // 4}f", data)


def text(data: memoryview) -> str:
    """Raises Unclear where it is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Unclear from None
