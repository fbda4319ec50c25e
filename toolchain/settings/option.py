"""A setting declared once: default, help, limits. The command line is made from it (toolchain/cli/signature.py).

    @dataclass(frozen=True)
    class SolverSettings:
        PANEL: ClassVar[str] = "Solver"  # the group in --help
        passes: int = option(4, "Rounds of least squares", low=0, high=100)

        def __post_init__(self) -> None:
            check_limits(self)

A new option is a new field; rules about several options stand in the class, or in rules.py where they cross classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from export.contract.errors import InputError

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What a field says about itself."""

    help: str  # a sentence without its full stop; named choices and the default are added to it
    low: float | None = None  # limits, both included
    high: float | None = None
    choices: tuple[Any, ...] = ()  # the values it can have
    common: bool = False  # whether --help shows it; --help-all shows every one
    flag: str = ""  # its spelling; "": --name-of-the-field
    unset: str = ""  # what None, or nothing, stands for
    metavar: str = ""
    envvar: str = ""
    negative: bool = True  # whether a boolean has a --no-..., too


@dataclass(frozen=True)
class Declared:
    """One option of a settings class."""

    name: str  # the field's
    flag: str
    panel: str
    about: Option
    type: Any  # the field's
    default: Any


def option(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is an option of the command line. about: the other fields of Option."""
    return field(default=default, metadata={_KEY: Option(help, **about)})


def declared(kind: Any, default: Any = None) -> Iterator[Declared]:
    """The options of a settings class: those of its bases, then its own, nested classes at their fields.

    default: an object of the class whose values are the defaults.
    """
    hints, known = get_type_hints(kind), {one.name: one for one in fields(kind)}
    for part in _parts(kind):
        for name in inspect.get_annotations(part):
            if name not in known:
                continue
            one = known[name]
            value = one.default if default is None else getattr(default, name)
            if is_dataclass(hints[name]):
                yield from declared(hints[name], None if value is MISSING else value)
            elif _KEY in one.metadata:
                yield Declared(name, _flag(one), part.PANEL, one.metadata[_KEY], hints[name], value)


def assembled(kind: Any, values: Mapping[str, Any]) -> Any:
    """An object of a settings class from values by the names of its options. Raises InputError as the class does."""
    if hasattr(kind, "from_given"):
        return kind.from_given(values)
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            made[one.name] = assembled(hints[one.name], values)
        elif one.name in values:
            made[one.name] = values[one.name]
    return kind(**made)


def check_limits(settings: Any) -> None:
    """Raises InputError naming the first option whose value is outside of what its declaration allows."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        if _KEY in one.metadata and value is not None:
            _check(_flag(one), one.metadata[_KEY], value)


def as_text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_text(one: Declared) -> str:
    """How help says what an option is where it is not given; empty where that goes without saying."""
    if one.default is None or one.default in ("", ()):
        return one.about.unset
    return "" if one.default is False else as_text(one.default)


def _flag(of: Field[Any]) -> str:
    return of.metadata[_KEY].flag or f"--{of.name.replace('_', '-')}"


def _parts(kind: Any) -> Iterator[Any]:
    for base in kind.__bases__:
        if is_dataclass(base):
            yield from _parts(base)
    yield kind


def _check(flag: str, about: Option, value: Any) -> None:
    if about.choices and value not in about.choices:
        if isinstance(about.choices[0], str):
            raise InputError(f"{flag} {value!r} is unknown; choose one of {', '.join(about.choices)}")
        raise InputError(f"{flag} must be {_spans(about.choices)}, not {value}")
    low, high = about.low, about.high
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN is outside, too
        raise InputError(f"{flag} must be {low} {'or more' if high is None else f'to {high}'}, not {value}")


def _spans(numbers: Iterable[int]) -> str:
    """Ascending whole numbers, runs of three and more as `2 to 8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    return " or ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])
