"""`native`: the codebook operators as a library for stock onnxruntime. Needs no torch, but the ziglang package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import guarded


@guarded
def native(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the library into.")],
    machine: Annotated[str, typer.Option(help="x86_64 or aarch64 Linux; this machine unless told.")] = "",
) -> None:
    """Build the operators' kernels as a native library for stock onnxruntime.

    Any exported folder then runs at native speed: SessionOptions.register_custom_ops_library(FILE).
    """
    from export.contract.errors import InputError
    from export.native.build import build_library, library_name, this_machine
    from toolchain.system.progress import Reporter

    name = machine or this_machine()
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is not a folder")
    with Reporter("Compiling", 1) as report:
        report.step(name)
        made = build_library(name, output / library_name(name))
    print(f"{made}: {made.stat().st_size / 1e3:.0f} kB; register it with SessionOptions.register_custom_ops_library")
