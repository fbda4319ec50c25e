"""Numbers with units, as people write them: `51.2GB/s`, `800mm2`, `32MiB`, `120fJ/op`.

A unit is base units with decimal or binary prefixes, multiplied and divided; `2` behind one is its square. Operations,
cycles and plain counts have no dimension. A number without a unit is in the unit that is asked for.
"""

from __future__ import annotations

import math
import re

_PREFIXES = {
    "": 1.0, "f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
    "T": 1e12, "P": 1e15, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
# factor, then powers of bytes, seconds, joules, volts and metres
_BASES: dict[str, tuple[float, tuple[int, int, int, int, int]]] = {
    "byte": (1.0, (1, 0, 0, 0, 0)), "B": (1.0, (1, 0, 0, 0, 0)),
    "bit": (0.125, (1, 0, 0, 0, 0)), "b": (0.125, (1, 0, 0, 0, 0)),
    "s": (1.0, (0, 1, 0, 0, 0)), "Hz": (1.0, (0, -1, 0, 0, 0)),
    "J": (1.0, (0, 0, 1, 0, 0)), "W": (1.0, (0, -1, 1, 0, 0)),
    "V": (1.0, (0, 0, 0, 1, 0)), "m": (1.0, (0, 0, 0, 0, 1)),
    "op": (1.0, (0,) * 5), "cycle": (1.0, (0,) * 5), "1": (1.0, (0,) * 5),
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_TOKEN = re.compile(r"[/*()]|[A-Za-zµ1]+2?")
_LONGEST = 60  # characters

Unit = tuple[float, tuple[int, ...]]


def quantity(text: str, unit: str) -> float:
    """The number that `text` states, in `unit`. Raises ValueError, one line, on anything else."""
    text = text.strip()
    number = _NUMBER.match(text)
    if number is None or len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]!r} is no number")
    value, name = float(number[0]), text[number.end() :].strip()
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is out of range")
    if not name:
        return value
    (factor, kind), (own, wanted) = unit_of(name), unit_of(unit)
    if kind != wanted:
        raise ValueError(f"{text!r} is not in {unit}, or a multiple of it")
    return value * (factor / own)


def unit_of(text: str) -> Unit:
    """Factor to SI and powers of byte, s, J, V and m. Raises ValueError on an unknown unit."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or not tokens or len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]!r} is no unit")
    found, rest = _product(tokens, text)
    if rest:
        raise ValueError(f"{text!r} is no unit")
    return found


def _product(tokens: list[str], text: str) -> tuple[Unit, list[str]]:
    """Units multiplied and divided from left to right, and the tokens behind them."""
    (factor, powers), tokens = _term(tokens, text)
    while tokens and tokens[0] in "/*":
        sign = -1 if tokens[0] == "/" else 1
        (more, others), tokens = _term(tokens[1:], text)
        factor, powers = factor * more**sign, tuple(a + sign * b for a, b in zip(powers, others))
    return (factor, powers), tokens


def _term(tokens: list[str], text: str) -> tuple[Unit, list[str]]:
    if tokens and tokens[0] == "(":
        found, tokens = _product(tokens[1:], text)
        if tokens[:1] == [")"]:
            return found, tokens[1:]
    elif tokens and tokens[0] not in "/*)":
        return _single(tokens[0], text), tokens[1:]
    raise ValueError(f"{text!r} is no unit")


def _single(name: str, text: str) -> Unit:
    square = name.endswith("2")
    plain = name.removesuffix("2")
    for prefix in sorted(_PREFIXES, key=len):  # a base unit's own name comes first: m is a metre
        if plain.startswith(prefix) and plain[len(prefix) :] in _BASES:
            factor, powers = _BASES[plain[len(prefix) :]]
            factor *= _PREFIXES[prefix]
            return (factor**2, tuple(2 * p for p in powers)) if square else (factor, powers)
    raise ValueError(f"{text!r} is no unit: {name!r} is unknown")
