"""What an answer can be held to, as a grammar in llguidance's dialect of Lark. Everything here comes from strangers.

Sizes and depths are bounded here; what a grammar costs is found out by trying it in a process of its own (compiler.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.contract.errors import InputError

MOST_BYTES = 512 << 10  # of one grammar, schemas included
_DEPTH, _MOST_NODES = 64, 20_000  # of a schema
_MOST_CHOICES = 10_000
_LARGEST = 2**53 - 1  # of whole numbers that a float64 holds exactly
_FARTHEST = 2**63 - 1024  # of those that are float64 and int64
# Every token that the grammar allows may come, not only the one that a tokenizer would put there: the model knows best.
_HEAD = '%llguidance {"no_forcing": true}\n'
# At most one space where JSON allows any: a model that has lost its way writes line breaks for ever.
_SPACING = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_TOGETHER = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "patternProperties")


@dataclass(frozen=True)
class Form:
    """A grammar, and the field or option that it came from, for error messages."""

    grammar: str  # Lark, or GBNF where `gbnf`
    where: str
    gbnf: bool = False
    around: str = ""  # rules around the grammar, which they call @form


def json_object(where: str) -> Form:
    """Any JSON object."""
    return schema({"type": "object"}, where)


def schema(found: Any, where: str) -> Form:
    """JSON that is valid under a JSON Schema (draft 2020-12, as far as llguidance knows it).

    Raises InputError when it is no schema, or beyond the limits.
    """
    return lark(f"start: {inline(found, where)}", where)


def inline(found: Any, where: str, lenient: bool = False) -> str:
    """The schema as it stands within a rule. Objects get none but their declared properties, where that is safe.

    lenient: keywords that llguidance does not know are left out instead of refused.
    """
    if not isinstance(found, dict | bool):
        raise InputError(f"{where} must be a JSON schema: an object, true or false")
    check_json(found, where)
    document: dict[str, Any] = {} if found is True else {"not": {}} if found is False else dict(found)
    document = document if _merges(document) else _closed(document, where)
    _check_bounds(document, where)
    return f"%json {json.dumps({**document, 'x-guidance': {**_SPACING, 'lenient': lenient}})}"


def regex(found: str, where: str) -> Form:
    """Text that an expression in the syntax of Rust's regex crate matches as a whole. Raises InputError."""
    if not found:
        raise InputError(f"{where} must not be empty")
    return lark(f"start: TEXT\nTEXT: /(?:{slashed(found, where)})/", where)


def choices(found: Sequence[str], where: str) -> Form:
    """One of several texts. Raises InputError when there are none, too many, or one is empty."""
    if not 0 < len(found) <= _MOST_CHOICES or not all(found):
        raise InputError(f"{where} must be a list of 1 to {_MOST_CHOICES} texts that are not empty")
    return lark("start: " + " | ".join(map(literal, dict.fromkeys(found))), where)


def grammar(found: str, where: str) -> Form:
    """A context-free grammar: Lark (as llguidance reads it) or GBNF (llama.cpp). Raises InputError."""
    if not found.strip():
        raise InputError(f"{where} must not be empty")
    is_gbnf = re.search(r"(?m)^\s*(%llguidance\b|start\s*:)", found[:MOST_BYTES]) is None
    return Form(_bounded(found, where), where, gbnf=True) if is_gbnf else lark(found, where)


def lark(rules: str, where: str) -> Form:
    """Rules as a form. Raises InputError when they are too large."""
    return Form(_bounded(_HEAD + rules, where), where)


def with_head(rules: str) -> str:
    """Rules that were made from GBNF, as a grammar."""
    return _HEAD + rules


def within(form: Form, rules: str) -> Form:
    """The form as `@form` of these rules. Raises InputError when they are too large."""
    return replace(form, around=_bounded(_HEAD + rules, form.where))


def assembled(grammar: str, around: str) -> str:
    """What llguidance gets."""
    if not around:
        return grammar
    return json.dumps({"grammars": [{"lark_grammar": around}, {"name": "form", "lark_grammar": grammar}]})


def literal(text: str) -> str:
    """A text as it stands within a rule."""
    return json.dumps(text).replace("\x7f", "\\u007f")  # what Lark's lexer does not take as it is


def slashed(expression: str, where: str) -> str:
    """An expression as it can stand between slashes. Raises InputError for one with a line break."""
    if "\n" in expression or "\r" in expression:
        raise InputError(f"{where}: an expression has no line break; \\n stands for one")
    return re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", expression)


def check_json(found: Any, where: str) -> None:
    """Raises InputError when JSON from a client nests too deeply, is too large, or holds half of a surrogate pair."""
    waiting, nodes = [(found, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if depth > _DEPTH or nodes > _MOST_NODES:
            raise InputError(f"{where} nests deeper than {_DEPTH} or has more than {_MOST_NODES:,} values")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is not a character") from None


def _bounded(text: str, where: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a surrogate pair, which is not a character") from None
    if size > MOST_BYTES:
        raise InputError(f"{where} makes a grammar of {size} bytes; at most {MOST_BYTES} are accepted")
    return text


def _merges(document: Any) -> bool:
    """Whether schemas may be put on top of each other, so that none of them can be closed."""
    return any(name in value for value in _objects(document) for name in ("allOf", "$dynamicRef")) or any(
        "$ref" in value and len(value) > 1 for value in _objects(document)
    )


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _closed(found: Any, where: str) -> Any:
    """The schema without properties that it allows but does not name: a narrower one, whose answers fit both."""
    if not isinstance(found, dict):
        return found
    made = {name: _closed_part(name, value, where) for name, value in found.items()}
    open_object = isinstance(found.get("properties"), dict) and found["properties"]
    if open_object and not any(name in found for name in ("additionalProperties", "unevaluatedProperties", *_TOGETHER)):
        required = found.get("required", [])
        if isinstance(required, list) and all(name in found["properties"] for name in required if type(name) is str):
            made["additionalProperties"] = False
    return _bounded_integer(made, where) if _is_whole(found.get("type")) else made


def _is_whole(kinds: Any) -> bool:
    """Whether the only numbers that a schema of this type has are whole ones."""
    return kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds and "number" not in kinds)


def _bounded_integer(made: dict[str, Any], where: str) -> dict[str, Any]:
    """Whole numbers without a bound stay within what every reader of JSON takes: digits would never end.

    Bounds beyond that become the nearest within them that llguidance computes with: they are float64, then int64.
    """
    if "enum" in made or "const" in made or any(name in made for name in _TOGETHER):
        return made
    kept = dict(made)
    for least, alike, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        given = [kept[name] for name in (least, alike) if name in kept]
        if not given:
            kept[least] = sign * _LARGEST
        elif all(type(one) in (int, float) for one in given) and any(abs(one) > _LARGEST for one in given):
            bounds = [kept[least] * sign] if least in kept else []
            bounds += [math.ceil(kept.pop(alike) * sign) - 1] if alike in kept else []
            kept[least] = sign * _below(math.floor(min(bounds)), where)
    return kept


def _below(bound: int, where: str) -> int:
    """The largest whole number up to the bound that float64 and int64 both hold."""
    found = int(float(min(max(bound, -_FARTHEST), _FARTHEST)))
    if bound < -_FARTHEST:
        raise InputError(f"{where} has a bound of whole numbers beyond 2^63")
    return found if found <= bound else int(math.nextafter(float(found), -math.inf))


def _check_bounds(document: Any, where: str) -> None:
    """Raises InputError for bounds of numbers that llguidance would take for others."""
    merges = _merges(document)
    for value in _objects(document):
        for name in _BOUNDS:
            bound = value.get(name)
            if not isinstance(bound, int | float) or abs(bound) <= _LARGEST:
                continue
            mixed = isinstance(value.get("type"), list) and "integer" in value["type"] and "number" in value["type"]
            if merges or mixed or any(other in value for other in _TOGETHER) or not _is_float(bound):
                raise InputError(f"{where} has {name} {str(bound)[:40]}: that far numbers are not exact here")


def _is_float(bound: int | float) -> bool:
    try:
        return float(bound) == bound
    except OverflowError:
        return False


def _closed_part(name: str, value: Any, where: str) -> Any:
    if name in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
        return {key: _closed(one, where) for key, one in value.items()}
    if name in ("items", "additionalProperties"):
        return _closed(value, where)
    if name in ("prefixItems", "anyOf", "oneOf") and isinstance(value, list):
        return [_closed(one, where) for one in value]
    return value
