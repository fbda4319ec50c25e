"""Former spellings of options: they go on working, hidden, with a line on stderr that says the new one."""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.settings import former
from toolchain.settings.preparation import NONE

_WITH_VALUE = ("--trellis", "--vector", "--incoherence")
_SWITCHES = ("--rotate", "--no-rotate")
_LOOKED_AT = ("--bits", "--method", "--preset")  # which say what a former option means


def modern_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's arguments in today's spelling, and a sentence for each that was not."""
    given, rest = _taken_apart(arguments)
    method, preset = given.get("--method", "athena"), given.get("--preset", "balanced")
    fresh: list[str] = []
    notes: list[str] = []

    def replaced(names: Sequence[str], spelling: list[str]) -> None:
        old = " ".join(name if name in _SWITCHES else f"{name} {given[name]}" for name in names if name in given)
        if old:
            fresh.extend(spelling)
            notes.append(f"{old} is now {' '.join(spelling)}")

    trellis = given.get("--trellis", former.PRESET_TRELLIS.get(preset, "no"))
    vector = given.get("--vector", str(former.PRESET_VECTOR.get(preset, 1)))
    if vector.isdecimal() and len(vector) < 20:  # int() refuses thousands of digits
        form, dimension = former.format_of(method, trellis, int(vector))
        replaced(("--trellis", "--vector"), ["--format", form, *(["--dimension", str(dimension)] if dimension else [])])
    else:
        replaced(("--vector",), ["--dimension", vector])  # where it is refused
    rotation = former.rotation_of(given.get("--incoherence", NONE), "--rotate" in given)
    replaced(("--incoherence", *_SWITCHES), ["--rotation", rotation])
    width = _width(given.get("--bits", ""))
    replaced(("--bits",) if width else (), width)
    if not width and "--bits" in given:
        fresh += ["--bits", given["--bits"]]
    return [*fresh, *rest], notes


def _taken_apart(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options this module cares for, by name, and the arguments without those that it writes anew."""
    given: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif word in _SWITCHES:
            given[word] = ""
        elif name in (*_WITH_VALUE, *_LOOKED_AT):
            taken = value if equals else next(words, None)
            if taken is None or name in ("--method", "--preset"):
                rest += [word] if equals or taken is None else [word, taken]
            if taken is not None:
                given[name] = taken
        else:
            rest.append(word)
    return given, rest


def _width(bits: str) -> list[str]:
    """How a fractional --bits is spelled; empty for what is none."""
    try:
        found = former.width_of(float(bits))
    except (ValueError, OverflowError):
        return []
    if found["budget"] is not None:
        return ["--budget", bits]
    return [] if bits.strip().lstrip("+-").isdecimal() else ["--bits", str(found["bits"])]
