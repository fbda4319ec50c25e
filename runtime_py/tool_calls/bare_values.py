"""Schemas as rules for notations that are not JSON: bare keys, other quotes, keyword arguments.

What such rules cannot say is left out, unless the tool is strict: then it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from export.contract.errors import InputError
from runtime_py.structured.forms import check_json, inline, literal
from runtime_py.tool_calls.notation import ANY, Tool

_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
_NUMBERS = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keywords that say nothing about values, or that _typed() and value() read.
_KNOWN = frozenset(
    (
        *_NUMBERS, "title", "description", "default", "examples", "deprecated", "$defs", "definitions", "$schema",
        "$id", "$comment", "enum", "const", "anyOf", "oneOf", "$ref", "minLength", "maxLength", "items", "minItems",
        "maxItems", "properties", "required", "additionalProperties",
    )
)  # fmt: skip


def keyword_arguments(tool: Tool, rules: list[str]) -> str:
    """A rule's name for `key=value, ...`: values as JSON, but True, False and None. The rules are added to the list."""
    check_json(tool.parameters, f"{tool.where}.parameters")
    shared = {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}

    def value(name: str, schema: Any) -> str:
        if not _KEY.fullmatch(name):
            message = f"{tool.where}.parameters: {name[:64]!r} cannot be the name of a keyword argument"
            raise InputError(f"{message}, which is how this model writes calls")
        return _python(schema, shared, f"{tool.where}.parameters.properties.{name[:64]}", not tool.strict)

    return members(tool.parameters, f"a{len(rules)}", "=", literal(", "), value, rules)


def _python(schema: Any, shared: Mapping[str, Any], where: str, lenient: bool) -> str:
    if isinstance(schema, dict) and not {"enum", "const", "$ref", "allOf"} & schema.keys():
        several = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(several, list) and not schema.keys() & {"type", "properties"}:
            return f"({' | '.join(_python(one, shared, where, lenient) for one in several)})"
        types = schema.get("type")
        if isinstance(types, list) and types and all(isinstance(one, str) for one in types):
            return f"({' | '.join(_python({**schema, 'type': one}, shared, where, lenient) for one in types)})"
        if types == "boolean":
            return '("True" | "False")'
        if types == "null":
            return '"None"'
    return inline({**schema, **shared} if isinstance(schema, dict) else schema, where, lenient)


def members(
    schema: Mapping[str, Any],
    name: str,
    between: str,
    comma: str,
    value: Callable[[str, Any], str],
    rules: list[str],
) -> str:
    """A rule's name for the members of an object in the order of its properties, of which only required ones must be.

    Two rules for each: one where nothing stands before it, one where a comma does. Raises InputError.
    """
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise InputError(f"{name}: properties must be an object and required a list")
    first, later = '""', '""'
    for number, (key, one) in reversed(list(enumerate(properties.items()))):
        pair = f"{name}p{number}"
        rules.append(f"{pair}: {literal(key + between)} {value(key, one)}")
        needed = key in required
        rules.append(f"{name}f{number}: {pair} {later}" + ("" if needed else f" | {first}"))
        rules.append(f"{name}l{number}: {comma} {pair} {later}" + ("" if needed else f" | {later}"))
        first, later = f"{name}f{number}", f"{name}l{number}"
    return first


class BareValues:
    """Gemma's notation: {key:value,...} with texts between marks."""

    def __init__(self, quote: str, special: bool) -> None:
        """quote: the mark's rule; special: whether it is a token of its own, which no text can hold."""
        self._quote, self._special = quote, special
        self.rules = [
            "text: " + (f"{quote} ANYTHING {quote}" if special else f"{quote} ended"),
            f"ANYTHING: {ANY}" if special else f"ended[lazy]: {ANY} {quote}",
            f'any: text | {inline({"type": "number"}, "")} | "true" | "false" | "null" | any_list | any_object',
            'any_list: "[" (any ("," any)*)? "]"',
            'any_object: "{" (any_pair ("," any_pair)*)? "}"',
            'any_pair: KEY ":" any',
            f"KEY: /{_KEY.pattern}/",
        ]
        self._refs: dict[str, str] = {}
        self._count = 0

    def arguments(self, tool: Tool) -> str:
        """A rule's name for the arguments of a tool. Raises InputError."""
        check_json(tool.parameters, f"{tool.where}.parameters")
        self._tool = tool
        self._refs = {}
        return self._value({"type": "object", **tool.parameters})

    def _value(self, schema: Any) -> str:
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, dict):
            return self._unsaid("a schema that is no object")
        unknown = sorted(set(schema) - _KNOWN)
        if unknown:
            return self._unsaid(unknown[0][:64])
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return f"({' | '.join(map(self._constant, values))})" if values else self._unsaid("enum")
        several = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(several, list) and several:
            return f"({' | '.join(map(self._value, several))})"
        types = schema.get("type")
        if isinstance(types, list) and types:
            return f"({' | '.join(self._value({**schema, 'type': one}) for one in types)})"
        return self._typed(schema, types)

    def _typed(self, schema: Mapping[str, Any], kind: Any) -> str:
        if kind == "boolean":
            return '("true" | "false")'
        if kind == "null":
            return '"null"'
        if kind in ("number", "integer"):
            numbers = {name: schema[name] for name in _NUMBERS if name in schema}
            return inline(numbers, f"{self._tool.where}.parameters")
        if kind == "string":
            return self._text(schema)
        if kind == "array":
            return self._list(schema)
        if kind == "object" or "properties" in schema:
            return self._object(schema)
        return "any"

    def _text(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength"), schema.get("maxLength")
        if least is None and most is None:
            return "text"
        if not self._special or not all(
            one is None or (type(one) is int and 0 <= one <= 65536) for one in (least, most)
        ):
            return self._unsaid("minLength or maxLength", "text")
        name = self._named(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/", "TEXT")
        return f"{self._quote} {name} {self._quote}"

    def _list(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if type(least) is not int or type(most) not in (int, type(None)) or not 0 <= least <= 1000:
            return self._unsaid("minItems or maxItems", "any_list")
        if most is not None and not max(least, 1) <= most <= 1000:
            return self._unsaid("maxItems", "any_list")
        item = self._named(self._value(schema.get("items", True)), "item")
        more = f'{item} ("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return self._named(f'"[" {more} "]"' if least else f'"[" ({more})? "]"', "list")

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties")
        if not properties:
            return self._named('"{" "}"', "object") if "properties" in schema else "any_object"
        if not isinstance(properties, dict) or not all(map(_KEY.fullmatch, properties)):
            return self._unsaid("properties", "any_object")
        if not all(isinstance(key, str) and key in properties for key in schema.get("required") or ()):
            return self._unsaid("required", "any_object")
        self._count += 1
        inner = members(schema, f"o{self._count}", ":", '","', lambda _, one: self._value(one), self.rules)
        return self._named(f'"{{" {inner} "}}"', "object")

    def _reference(self, name: Any) -> str:
        found: Any = self._tool.parameters
        parts = name.split("/") if isinstance(name, str) else []
        for part in parts[1:]:
            found = found.get(part) if isinstance(found, dict) else None
        if parts[:1] != ["#"] or len(parts) < 2 or found is None:
            return self._unsaid("$ref")
        if name not in self._refs:
            self._count += 1
            self._refs[name] = rule = f"ref{self._count}"
            self.rules.append(f"{rule}: {self._value(found)}")
        return self._refs[name]

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {literal(value)} {self._quote}" if value else f"{self._quote} {self._quote}"
        if isinstance(value, dict | list):
            return self._unsaid("enum")
        return literal(json.dumps(value))

    def _named(self, body: str, kind: str) -> str:
        self._count += 1
        name = f"{kind}{self._count}"
        self.rules.append(f"{name}: {body}")
        return name

    def _unsaid(self, keyword: str, instead: str = "any") -> str:
        """What stands where the rules cannot say something. Raises InputError when the tool is strict."""
        if self._tool.strict:
            where = f"{self._tool.where}.parameters"
            raise InputError(f"{where}: {keyword} cannot be held to in this model's notation; strict asks for it")
        return instead
