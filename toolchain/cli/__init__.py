"""The `athena-export` command line. A command is looked up by name, and imports what it needs when it runs.

All of them together take longer to describe than a small model takes to answer, so only the one that is asked for is;
--help, and who imports `app`, get all.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from export import __version__
from toolchain.cli.signature import OptionsCommand, QuantizeCommand

_COMMANDS = {  # by name: a function in a module of this folder
    "export": "quantize.export",
    "quantize": "quantize.quantize",
    "package": "quantize.package",
    "shrink": "shrink.shrink",
    "lower": "lower.lower",
    "native": "lower.native",
    "run": "run.run",
    "chat": "chat.chat",
    "serve": "chat.serve",
    "embed": "embed.embed",
    "bench": "bench.bench",
    "warmup": "bench.warmup",
    "eval": "evaluate.evaluate",
    "compare": "compare.compare",
    "inspect": "inspect.inspect",
    "cost": "cost.cost",
    "sweep": "cost.sweep",
    "mechanisms": "cost.mechanisms",
    "tasks": "cost.tasks",
    "targets": "cost.targets",
    "doctor": "machine.doctor",
    "models": "machine.models",
}
_GROUPS = {"adapter": "adapters.app"}  # and those with commands of their own


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


def _made(names: Iterable[str]) -> typer.Typer:
    """The command line with these commands."""
    made = typer.Typer(
        name="athena-export",
        help="Quantize language models to 2-4 bit codebooks, export plain ONNX, run it, and cost it on accelerators.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog="Exit codes: 0 done, 2 wrong input, 1 our fault. --debug anywhere shows tracebacks.",
    )
    made.callback()(_root)
    for name in names:
        if name in _GROUPS:
            made.add_typer(_found(_GROUPS[name]), name=name)
        else:
            kind = QuantizeCommand if name in ("export", "quantize") else OptionsCommand
            made.command(name, cls=kind)(_found(_COMMANDS[name]))
    return made


def _found(place: str) -> Any:
    module, name = place.split(".")
    return getattr(import_module(f"toolchain.cli.{module}"), name)


def _asked_for(arguments: Sequence[str]) -> typer.Typer:
    """The command line for these arguments: with all commands, unless they begin with one."""
    known = [*_COMMANDS, *_GROUPS]
    return _made([arguments[0]] if arguments and arguments[0] in known else known)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    globals()["app"] = _made([*_COMMANDS, *_GROUPS])
    return globals()["app"]


def main() -> None:
    """Console entry point."""
    if "--debug" in sys.argv[1:]:
        sys.argv.remove("--debug")
        from toolchain.cli import common

        common.show_tracebacks = True
    _open_closed_streams()
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # workers take no modules from the current folder
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # characters that the terminal's encoding lacks
    (globals().get("app") or _asked_for(sys.argv[1:]))()


def _open_closed_streams() -> None:
    """Standard streams that the caller closed lead nowhere: the next file would get their number, and our lines."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # open() takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the whole process)
