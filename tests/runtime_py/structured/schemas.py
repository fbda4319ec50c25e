"""Schemas of many kinds whose answers have an end: texts and lists are bounded."""

from __future__ import annotations


def record(*required, **properties):
    return {"type": "object", "properties": properties, "required": list(required or properties)}


NAME = {"type": "string", "maxLength": 12}
SCHEMAS = {
    "a record": record(name=NAME, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "optional members": record("name", name=NAME, nick=NAME, mail={"type": ["string", "null"], "maxLength": 8}),
    "nested": record(person=record(name=NAME, home=record(street=NAME, number={"type": "integer", "maximum": 99}))),
    "a list of numbers": {"type": "array", "items": {"type": "number", "minimum": -5, "maximum": 5}, "maxItems": 4},
    "a list of records": {"type": "array", "minItems": 1, "maxItems": 3, "items": record(k={"enum": ["x", "y"]})},
    "a tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 7}], "items": False, "minItems": 2},
    "constants": record(kind={"const": "cat"}, lives={"enum": [7, 9]}, wild={"enum": [True, None, 'ü\n"']}),
    "a union": {"anyOf": [record(a={"const": 1}), record(b=NAME)]},
    "one of": {"oneOf": [record(kind={"const": "a"}, x={"type": "null"}), record(kind={"const": "b"}, y=NAME)]},
    "definitions": {
        "$defs": {"leaf": record(v={"type": "boolean"})},
        **record(left={"$ref": "#/$defs/leaf"}, right={"$ref": "#/$defs/leaf"}),
    },
    "all of": {
        "allOf": [record("a", a={"type": "boolean"}), record("b", b=NAME)],
        "properties": {"a": {}, "b": {}},
        "additionalProperties": False,
    },
    "a pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}),
    "a date": record(day={"type": "string", "format": "date"}, at={"type": "string", "format": "ipv4"}),
    "an identifier": record(id={"type": "string", "format": "uuid"}),
    "integers": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12, "multipleOf": 2},
    "a text": {"type": "string", "minLength": 3, "maxLength": 9},
    "nothing": {"type": "null"},
    "odd names": record(**{"a b": {"type": "boolean"}, 'q"\\': {"const": 1}, "ключ": {"const": "да"}}),
    "a map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,6}$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 1,
    },
    "deep": {"type": "array", "maxItems": 1, "items": {"type": "array", "maxItems": 2, "items": record(z=NAME)}},
}
