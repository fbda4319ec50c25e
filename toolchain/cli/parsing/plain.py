"""Arguments that leave no doubt, without typer, whose import takes longer than a small model's answer.

Only what typer would read the same way is read here: `--name value`, `--name=value`, switches, arguments by their
place, usual numbers. Everything else, --help and mistakes included, is typer's, which has the words for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from toolchain.cli.parsing.spread import Command, Place, Single, Spread, is_chosen, typed

_NUMBERS: dict[Any, re.Pattern[str]] = {
    int: re.compile(r"0|-?[1-9][0-9]{0,17}"),
    float: re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?"),
}


class _Flag(NamedTuple):
    name: str  # the parameter's
    kind: Any  # int, float, str; list[str] where it may come several times; bool for a switch
    value: bool = True  # of a switch


class _Doubt(Exception):
    """It is for typer to say."""


def understood(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """What a command that was spread is called with; None where that is not for certain."""
    if os.name == "nt":  # typer expands file names there
        return None
    found: Spread = command.spread_of  # type: ignore[attr-defined]
    try:
        places, flags, values = _forms(found)
        words = list(reversed(arguments))
        seen: dict[str, Any] = {}
        while words:
            word = words.pop()
            if not word.startswith("-"):
                seen[places.pop(0)] = Path(_text(word))
                continue
            spelling, equals, text = word.partition("=")
            flag = flags[spelling]
            if flag.kind is bool:
                if equals:
                    raise _Doubt
                _put(seen, flag.name, flag.value)
                continue
            given = text if equals else words.pop()
            if flag.kind == list[str]:
                seen.setdefault(flag.name, []).append(_text(given))
            else:
                _put(seen, flag.name, _read(flag.kind, given))
        return None if places else {**values, **seen}
    except (_Doubt, LookupError):
        return None


def _forms(found: Spread) -> tuple[list[Any], dict[str, _Flag], dict[str, Any]]:
    """Names of arguments by their places, options by their spellings, and the values of options that are not given."""
    places: list[str] = []
    flags: dict[str, _Flag] = {}
    values: dict[str, Any] = {}
    for name, own in found.own.items():
        kind, about = get_args(own.annotation)
        if isinstance(about, Place) and kind is Path:
            places.append(name)
        elif isinstance(about, Single):
            flags[about.flag] = _Flag(name, kind)
            values[name] = own.default
        else:
            raise _Doubt
    for setting, options in found.options.items():
        for one in options:
            kind, default = typed(one)
            if one.about.envvar or kind not in (int, float, str, bool, list[str]):
                raise _Doubt
            values[one.name] = None if is_chosen(found.kinds[setting]) else default
            flags[one.flag] = _Flag(one.name, kind)
            if kind is bool and one.about.negative:
                flags[f"--no-{one.flag[2:]}"] = _Flag(one.name, kind, False)
    return places, flags, values


def _put(seen: dict[str, Any], name: str, value: Any) -> None:
    if name in seen:
        raise _Doubt
    seen[name] = value


def _read(kind: Any, word: str) -> Any:
    if kind is str:
        return _text(word)
    if not _NUMBERS[kind].fullmatch(word):
        raise _Doubt
    return kind(word)


def _text(word: str) -> str:
    """A text as it is, unless it is empty or no Unicode."""
    if not word or any("\ud800" <= letter <= "\udfff" for letter in word):
        raise _Doubt
    return word
