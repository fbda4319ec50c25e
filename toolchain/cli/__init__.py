"""The `athena-export` command line. A command is looked up by name, and imports what it needs when it runs.

All of them together take longer to describe than a small model takes to answer, so only the one that is asked for is;
--help, and who imports `app`, get all.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from export import __version__

_COMMANDS = {  # by name: a function in a module of this folder
    "export": "quantize.export",
    "quantize": "quantize.quantize",
    "package": "quantize.package",
    "shrink": "reducing.shrink.shrink",
    "sparsify": "reducing.sparsify.sparsify",
    "schedule": "reducing.schedule.schedule",
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
_COLLECT_EVERY = 20_000  # objects more than before: a start makes as many that stay, and Python looks every 700
_WITHOUT_TYPER = frozenset({"run"})  # declared without it, so that starting them needs none


def _made(names: Sequence[str]) -> Any:
    """The command line with these commands: a typer application."""
    from toolchain.cli.signature import command_line

    return command_line({name: _found(name) for name in names})


def _found(name: str) -> Any:
    module, function = {**_COMMANDS, **_GROUPS}[name].rsplit(".", 1)
    return getattr(import_module(f"toolchain.cli.{module}"), function)


def _asked_for(arguments: Sequence[str]) -> Any:
    """The command line for these arguments: with all commands, unless they begin with one."""
    known = [*_COMMANDS, *_GROUPS]
    return _made([arguments[0]] if arguments and arguments[0] in known else known)


def _done_plainly(arguments: Sequence[str]) -> bool:
    """Do what is asked for where that takes no typer to be understood; whether it was."""
    if list(arguments) == ["--version"]:
        print(f"athena-export {__version__}")
        return True
    if not arguments or arguments[0] not in _WITHOUT_TYPER:
        return False
    usual = gc.get_threshold()
    gc.set_threshold(_COLLECT_EVERY, *usual[1:])
    from toolchain.cli.parsing.plain import understood

    command = _found(arguments[0])
    given = understood(command, arguments[1:])
    if given is None:
        gc.set_threshold(*usual)
    else:
        command(**given)
    return given is not None


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
    if "app" not in globals() and _done_plainly(sys.argv[1:]):
        return
    (globals().get("app") or _asked_for(sys.argv[1:]))()


def _open_closed_streams() -> None:
    """Standard streams that the caller closed lead nowhere: the next file would get their number, and our lines."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # open() takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the whole process)
