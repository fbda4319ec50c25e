"""Settings classes to typer parameters and back: an option is declared once, as a field (toolchain/settings/option.py).

    @guarded
    @with_options
    def run(folder: Folder, asked: GenerationSettings = CONTINUATION, execution: Execution = AS_IT_IS) -> None: ...

A parameter whose type is a dataclass becomes one option for each field of it, its bases and its nested dataclasses;
the command gets the object back. The parameter's default gives the options' defaults. A class with a classmethod
`from_given(values)` is made by that from the options that were given, so it can tell a choice from a default; its
`default_text(option)` says what the defaults are.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, Optional, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from toolchain.cli.common import whole_numbers
from toolchain.settings.option import Declared, as_text, assembled, declared, default_text

Command = Callable[..., None]


def with_options(command: Command) -> Command:
    """The command with its settings parameters spread out, as typer reads it."""
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    spread: dict[str, list[Declared]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            spread[parameter.name] = list(declared(kind, default))
            shown += [_parameter(one, kind) for one in spread[parameter.name]]
        else:
            shown.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    if any(_is_rare(one) for one in shown):
        shown.append(_help_all())

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        given.pop("help_all", None)  # has done its work
        for name, options in spread.items():
            values = {one.name: _value(one, given.pop(one.name)) for one in options}
            if hasattr(hints[name], "from_given"):
                values = {key: value for key, value in values.items() if value is not None}
            given[name] = assembled(hints[name], values)
        command(**given)

    wrapper.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return wrapper


class OptionsCommand(TyperCommand):
    """A command whose help has an option's --no form in the text: a column of its own would be too wide."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        shown = copy.copy(self)
        shown.params = [copy.copy(one) for one in self.params]
        one: Any
        for one in shown.params:
            if one.secondary_opts:
                one.help = f"{(one.help or '').rstrip('.')}; or {one.secondary_opts[0]}."
                one.secondary_opts = []
        super(OptionsCommand, shown).format_help(ctx, formatter)


class QuantizeCommand(OptionsCommand):
    """A command that also knows the options' former spellings."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        from toolchain.cli.spellings.former import modern_arguments

        args, notes = modern_arguments(args)
        for note in notes:
            print(f"[{note}]", file=sys.stderr)
        return super().parse_args(ctx, args)


def _show_all(ctx: typer.Context, asked: bool) -> None:
    """--help with the rare options, too, which are hidden there."""
    if not asked or ctx.resilient_parsing:
        return
    ctx.command = copy.copy(ctx.command)
    ctx.command.params = [copy.copy(one) for one in ctx.command.params]
    for one in ctx.command.params:
        if hasattr(one, "hidden"):
            one.hidden = False
    print(ctx.get_help())
    ctx.exit()


def _help_all() -> inspect.Parameter:
    info = typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show all options, the rare ones, too.")
    return inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, info]
    )


def _parameter(one: Declared, kind: Any) -> inspect.Parameter:
    """The typer parameter of an option. Of a class with from_given it is None where it was not given."""
    about, chosen = one.about, hasattr(kind, "from_given")
    told = kind.default_text(one) if chosen else default_text(one)
    names = f": {', '.join(about.choices)}" if about.choices and isinstance(about.choices[0], str) else ""
    inner, default = _typed(one)
    switch = inner is bool and about.negative
    info = typer.Option(
        f"{one.flag}/--no-{one.flag[2:]}" if switch else one.flag,
        help=f"{about.help}{names}" + (f" (default {told})." if told else "."),
        rich_help_panel=one.panel,
        hidden=not about.common,
        show_default=False,
        metavar=about.metavar or _metavar(one),
        envvar=about.envvar or None,
        show_envvar=bool(about.envvar),
    )
    default = None if chosen else default
    kind_of_value = Annotated[Optional[inner] if default is None else inner, info]  # type: ignore[valid-type]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind_of_value)


def _is_rare(parameter: inspect.Parameter) -> bool:
    return any(getattr(info, "hidden", False) for info in get_args(parameter.annotation)[1:])


def _typed(one: Declared) -> tuple[Any, Any]:
    """Type and default that typer is told: numbers of a tuple come as one text, texts of a tuple one by one."""
    if _is_tuple(one, int):
        return str, as_text(one.default)
    if _is_tuple(one, str):
        return list[str], None
    inner = [part for part in get_args(one.type) if part is not type(None)]
    return (str if str in inner else inner[0] if inner else one.type), one.default


def _value(one: Declared, given: Any) -> Any:
    """What the settings class takes for what typer gives. Raises InputError for a list of no numbers."""
    if _is_tuple(one, int):
        return whole_numbers(given, one.flag)
    return tuple(given or ()) if _is_tuple(one, str) else given


def _metavar(one: Declared) -> str | None:
    return "n,n" if _is_tuple(one, int) else "text" if _is_tuple(one, str) else None


def _is_tuple(one: Declared, of: type) -> bool:
    return get_args(one.type) == (of, ...)
