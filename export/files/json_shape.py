"""Checks JSON data from outside against the shape that the readers count on. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.contract.errors import InputError

NUMBER, FINITE, COUNT = "a number", "a finite number", "a whole number, 0 or more"
TEXT, FLAG = "a text", "true or false"
_MOST = 2**63  # whole numbers beyond fit no float's precision, and some of them no float at all
_SHOWN = 60  # characters of a wrong value


@dataclass(frozen=True)
class Maybe:
    """Null, or of this shape."""

    shape: Any


@dataclass(frozen=True)
class Each:
    """An object whose values all have this shape, whatever their names."""

    shape: Any


def check(value: Any, shape: Any, where: str) -> None:
    """Raises InputError, naming the field, where the value has another shape.

    shape: one of the constants above; a list of one shape; an object of shapes, whose names may end in "?" when the
    field may be absent, and which allows other names; Maybe or Each.
    """
    if isinstance(shape, Maybe):
        if value is not None:
            check(value, shape.shape, where)
    elif isinstance(shape, Each):
        for name, item in _typed(value, dict, "an object", where).items():
            check(item, shape.shape, f"{where}.{name}")
    elif isinstance(shape, Mapping):
        _check_object(_typed(value, dict, "an object", where), shape, where)
    elif isinstance(shape, list):
        for i, item in enumerate(_typed(value, list, "a list", where)):
            check(item, shape[0], f"{where}[{i}]")
    elif not _is(value, shape):
        raise _wrong(where, shape, value)


def _check_object(value: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> None:
    for name, inner in shape.items():
        field = name.removesuffix("?")
        if field in value:
            check(value[field], inner, f"{where}.{field}" if not where.endswith(": ") else where + field)
        elif not name.endswith("?"):
            raise InputError(f"{where.removesuffix(': ')}: {field} is missing")


def _is(value: Any, shape: str) -> bool:
    if shape == TEXT:
        return isinstance(value, str)
    if shape == FLAG:
        return isinstance(value, bool)
    if type(value) is int:
        return (0 if shape == COUNT else -_MOST) <= value < _MOST
    return isinstance(value, float) and (shape == NUMBER or (shape == FINITE and math.isfinite(value)))


def _typed(value: Any, kind: type, name: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(where, name, value)
    return value


def _wrong(where: str, expected: str, value: Any) -> InputError:
    shown = f"{type(value).__name__}" if isinstance(value, dict | list) else _short(value)
    return InputError(f"{where} must be {expected}, not {shown}")


def _short(value: Any) -> str:
    if type(value) is int and abs(value) >= _MOST:  # Python refuses to write very long ones
        return "a whole number beyond 64 bits"
    return repr(value)[:_SHOWN]
