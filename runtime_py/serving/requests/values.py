"""Single values of a request. Whatever is wrong becomes an ApiError that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_py.serving.requests.errors import ApiError


def text(value: str, where: str) -> str:
    """The text, unless it holds half of a surrogate pair, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where} holds half of a surrogate pair, which is not a character", where) from None
    return value


def optional(body: Mapping[str, Any], name: str, kind: type, default: Any, where: str = "") -> Any:
    """The field when it is of that kind (str, bool, dict or list), the default when it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        names = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}
        raise ApiError(400, f"{where}{name} must be {names[kind]}", f"{where}{name}")
    return value


def integer(body: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """The field when it is a whole number from low to high, the default when it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise ApiError(400, f"{name} must be a whole number from {low} to {high}", name)
    return value


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """The field when it is a number from low to high, the default when it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high:  # compared first: float() of 10**400 overflows
        raise ApiError(400, f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)
