"""The `athena-export` command line. Every command imports what it needs when it runs: --help is instant."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from export import __version__
from toolchain.cli import (
    adapters,
    bench,
    chat,
    compare,
    cost,
    embed,
    evaluate,
    inspect,
    lower,
    machine,
    quantize,
    run,
    shrink,
)
from toolchain.cli.signature import OptionsCommand, QuantizeCommand

app = typer.Typer(
    name="athena-export",
    help="Quantize language models to 2-4 bit codebooks, export plain ONNX, run it, and cost it on accelerators.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 2 wrong input, 1 our fault. --debug anywhere shows tracebacks.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"athena-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


_COMMANDS: dict[str, Callable[..., None]] = {
    "export": quantize.export,
    "quantize": quantize.quantize,
    "package": quantize.package,
    "shrink": shrink.shrink,
    "lower": lower.lower,
    "native": lower.native,
    "run": run.run,
    "chat": chat.chat,
    "serve": chat.serve,
    "embed": embed.embed,
    "bench": bench.bench,
    "warmup": bench.warmup,
    "eval": evaluate.evaluate,
    "compare": compare.compare,
    "inspect": inspect.inspect,
    "cost": cost.cost,
    "sweep": cost.sweep,
    "mechanisms": cost.mechanisms,
    "tasks": cost.tasks,
    "targets": cost.targets,
    "doctor": machine.doctor,
    "models": machine.models,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=QuantizeCommand if _name in ("export", "quantize") else OptionsCommand)(_command)
app.add_typer(adapters.app, name="adapter")


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
    app()


def _open_closed_streams() -> None:
    """Standard streams that the caller closed lead nowhere: the next file would get their number, and our lines."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # open() takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the whole process)
