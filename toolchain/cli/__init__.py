"""The `athena-export` command line. Every command imports what it needs when it runs: --help is instant."""

from __future__ import annotations

import io
import os
import sys

import typer

from toolchain.cli import bench, chat, compare, cost, embed, evaluate, inspect, lower, native, quantize, run

app = typer.Typer(
    name="athena-export",
    help="Quantize language models to 2-4 bit codebooks, export plain ONNX, run it, and cost it on accelerators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 2 wrong input, 1 our fault. --debug anywhere shows tracebacks.",
)
app.command("export")(quantize.export)
app.command("quantize")(quantize.quantize)
app.command("package")(quantize.package)
app.command("lower")(lower.lower)
app.command("native")(native.native)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(chat.serve)
app.command("embed")(embed.embed)
app.command("bench")(bench.bench)
app.command("warmup")(bench.warmup)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("cost")(cost.cost)
app.command("sweep")(cost.sweep)
app.command("targets")(cost.targets)


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
