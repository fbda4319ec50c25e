"""What a request's answer is held to, under each of the names that clients write it with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from export.contract.errors import InputError
from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.structured import forms
from runtime_py.structured.forms import Form


def form(body: Mapping[str, Any]) -> Form | None:
    """None: any text. Raises ApiError naming the field that is wrong, or the second one where there are two."""
    found: list[Form] = []
    for name, make in _MAKERS.items():
        if body.get(name) is None or body[name] == "":  # llama.cpp's clients write an empty grammar for none
            continue
        try:
            one = make(body[name], name)
        except InputError as error:
            raise ApiError(400, str(error), name) from None
        found += [] if one is None else [one]
        if len(found) > 1:
            raise ApiError(400, f"{name}: the answer is held to {found[0].where} already; one form a request", name)
    return found[0] if found else None


def _response_format(value: Any, where: str) -> Form | None:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} must be an object with type", where)
    kind = value.get("type")
    if kind == "text":
        fields.check(value, fields.TEXT_FORMAT, False, f"{where}.")
        return None
    if kind == "json_object":
        fields.check(value, fields.OBJECT_FORMAT, False, f"{where}.")
        given = value.get("schema")
        return forms.json_object(where) if given is None else forms.schema(given, f"{where}.schema")
    if kind != "json_schema":
        raise ApiError(400, f"{where}.type must be text, json_object or json_schema", f"{where}.type")
    fields.check(value, fields.SCHEMA_FORMAT, False, f"{where}.")
    named = value.get("json_schema")
    if not isinstance(named, dict) or named.get("schema") is None:
        raise ApiError(400, f"{where}.json_schema must be an object with schema", f"{where}.json_schema")
    fields.check(named, fields.NAMED_SCHEMA, False, f"{where}.json_schema.")
    return forms.schema(named["schema"], f"{where}.json_schema.schema")


def _schema(value: Any, where: str) -> Form:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"{where} is no JSON ({error})"[:300], where) from None
    return forms.schema(value, where)


def _text(make: Callable[[str, str], Form]) -> Callable[[Any, str], Form]:
    def of(value: Any, where: str) -> Form:
        if not isinstance(value, str):
            raise ApiError(400, f"{where} must be a text", where)
        return make(value, where)

    return of


def _choices(value: Any, where: str) -> Form:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ApiError(400, f"{where} must be a list of texts", where)
    return forms.choices(value, where)


def _object(value: Any, where: str) -> Form | None:
    if not isinstance(value, bool):
        raise ApiError(400, f"{where} must be true or false", where)
    return forms.json_object(where) if value else None


def _structured_outputs(value: Any, where: str) -> Form | None:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} must be an object", where)
    fields.check(value, fields.STRUCTURED_OUTPUTS, False, f"{where}.")
    given = {name: value[name] for name in _STRUCTURED if value.get(name) is not None}
    if len(given) > 1:
        raise ApiError(400, f"{where} has {' and '.join(given)}; one form a request", where)
    return next((_STRUCTURED[name](one, f"{where}.{name}") for name, one in given.items()), None)


_STRUCTURED: Mapping[str, Callable[[Any, str], Form | None]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _text(forms.regex),
    "choice": _choices,
    "grammar": _text(forms.grammar),
}
_MAKERS: Mapping[str, Callable[[Any, str], Form | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _text(forms.regex),
    "guided_choice": _choices,
    "guided_grammar": _text(forms.grammar),
    "json_schema": _schema,
    "grammar": _text(forms.grammar),
    "regex": _text(forms.regex),
    "ebnf": _text(forms.grammar),
}
