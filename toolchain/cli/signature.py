"""Settings classes to typer parameters: an option is declared once, as a field (toolchain/settings/option.py).

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
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Optional, get_args

import typer
from typer.core import TyperCommand

from export import __version__
from toolchain.cli.parsing.spread import Command, Place, Single, Spread, is_chosen, is_tuple, spread, typed
from toolchain.settings.option import Declared, default_text


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"athena-export {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def command_line(commands: Mapping[str, Any]) -> typer.Typer:
    """The command line with these commands, and with those of a typer application as commands of its name."""
    made = typer.Typer(
        name="athena-export",
        help="Quantize language models to 2-4 bit codebooks, export plain ONNX, run it, and cost it on accelerators.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog="Exit codes: 0 done, 2 wrong input, 1 our fault. --debug anywhere shows tracebacks.",
    )
    made.callback()(_root)
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name)
        else:
            kind = QuantizeCommand if name in ("export", "quantize") else OptionsCommand
            made.command(name, cls=kind)(_readable(command))
    return made


def with_options(command: Command) -> Command:
    """The command with its settings parameters spread out, as typer reads it."""
    return _readable(spread(command))


def _readable(command: Command) -> Command:
    """The same command, with the parameters that typer reads where it was spread without them."""
    if not hasattr(command, "spread_of") or hasattr(command, "__signature__"):
        return command
    shown = list(_shown(command))
    if any(_is_rare(one) for one in shown):
        shown.append(_help_all())
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return command


def _shown(command: Command) -> Iterator[inspect.Parameter]:
    found: Spread = command.spread_of  # type: ignore[attr-defined]
    for name in found.order:
        if name in found.own:
            yield _own(found.own[name])
        else:
            yield from (_parameter(one, found.kinds[name]) for one in found.options[name])


def _own(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter that is no setting: typer's own, or said without typer."""
    kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
    info: Any = about[0] if about else None
    if isinstance(info, Place):
        place = typer.Argument(help=info.help)
        return parameter.replace(annotation=Annotated[kind, place])  # type: ignore[valid-type]
    if isinstance(info, Single):
        option = typer.Option(info.flag, help=info.help)
        return parameter.replace(annotation=Annotated[kind, option])  # type: ignore[valid-type]
    return parameter


class OptionsCommand(TyperCommand):
    """A command whose help has an option's --no form in the text: a column of its own would be too wide."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not any("--help-all" in one.opts for one in self.params):  # nothing is rare: that is --help
            args = ["--help" if one == "--help-all" else one for one in args]
        return super().parse_args(ctx, args)

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
    about, chosen = one.about, is_chosen(kind)
    told = kind.default_text(one) if chosen else default_text(one)
    names = f": {', '.join(about.choices)}" if about.choices and isinstance(about.choices[0], str) else ""
    inner, default = typed(one)
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


def _metavar(one: Declared) -> str | None:
    return "n,n" if is_tuple(one, int) else "text" if is_tuple(one, str) else None
