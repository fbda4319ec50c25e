"""A command's settings parameters spread out into options, one for each field. Knows nothing of typer (signature.py).

    @guarded
    @spread
    def run(folder: Annotated[Path, Place("Model folder")], execution: Execution = AS_IT_IS) -> None: ...

The function that comes out takes one value for each option, as the command line has it, and makes the settings of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple, get_args, get_type_hints

from export.contract.errors import InputError
from toolchain.settings.option import Declared, as_text, assembled, declared

Command = Callable[..., None]


class Place(NamedTuple):
    """About a parameter that is an argument by its place."""

    help: str


class Single(NamedTuple):
    """About a parameter that is an option of no settings class."""

    help: str
    flag: str  # as it is typed


class Spread(NamedTuple):
    """What a command takes: parameters of its own, and those that are settings."""

    order: list[str]  # of their names
    own: dict[str, inspect.Parameter]
    kinds: dict[str, Any]  # classes of the settings
    options: dict[str, list[Declared]]  # of each


def spread(command: Command) -> Command:
    """The command with an option in place of every field of its settings; `spread_of` says which."""
    hints = get_type_hints(command, include_extras=True)
    found = Spread([], {}, {}, {})
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        found.order.append(parameter.name)
        if is_dataclass(kind):
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            found.kinds[parameter.name], found.options[parameter.name] = kind, list(declared(kind, default))
        else:
            found.own[parameter.name] = parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        given.pop("help_all", None)  # has done its work
        for name, options in found.options.items():
            values = {one.name: _value(one, given.pop(one.name)) for one in options}
            if is_chosen(found.kinds[name]):
                values = {key: value for key, value in values.items() if value is not None}
            given[name] = assembled(found.kinds[name], values)
        command(**given)

    wrapper.spread_of = found  # type: ignore[attr-defined]
    return wrapper


def is_chosen(kind: Any) -> bool:
    """Whether a settings class is made from the options that were given, so that the others are None."""
    return hasattr(kind, "from_given")


def typed(one: Declared) -> tuple[Any, Any]:
    """Type and default on the command line: numbers of a tuple come as one text, texts of a tuple one by one."""
    if is_tuple(one, int):
        return str, as_text(one.default)
    if is_tuple(one, str):
        return list[str], None
    inner = [part for part in get_args(one.type) if part is not type(None)]
    return (str if str in inner else inner[0] if inner else one.type), one.default


def is_tuple(one: Declared, of: type) -> bool:
    """Whether an option has several values of a type."""
    return get_args(one.type) == (of, ...)


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; empty text gives none. Raises InputError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} must be whole numbers separated by commas, not {text!r}") from None


def _value(one: Declared, given: Any) -> Any:
    """What the settings class takes for what was typed. Raises InputError for a list of no numbers."""
    if is_tuple(one, int):
        return whole_numbers(given, one.flag)
    return tuple(given or ()) if is_tuple(one, str) else given
