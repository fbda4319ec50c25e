"""`bench` and `warmup`: speed of a model folder on this machine, and compiling its kernels ahead of time."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from export.contract.errors import InputError
from toolchain.cli.common import announce_compilation, guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.execution import AS_IT_IS, FLOATS, FULL_WIDTH, Execution, KeyValueCache, Width
from toolchain.settings.serving import MEASURED, BenchOptions
from toolchain.system.units import size_text

Folder = Annotated[Path, typer.Argument(help="Model folder made by `export`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@guarded
@with_options
def bench(
    folder: Folder,
    asked: BenchOptions = MEASURED,
    execution: Execution = AS_IT_IS,
    cached: KeyValueCache = FLOATS,
    width: Width = FULL_WIDTH,
    save: Annotated[bool, typer.Option(help="Add the result to the folder's report.")] = True,
    json: Json = False,
) -> None:
    """Measure prefill and decode speed, memory bandwidth used, and peak memory."""
    from runtime_py.bench.speed import BenchSettings
    from runtime_py.bench.speed import bench as measure

    announce_compilation()
    settings = BenchSettings(
        asked.prompt_lengths, asked.depths, asked.tokens, asked.rounds, execution.threads, execution.mmap,
        execution.cpus, cached.cache_bits, width.bits,
    )  # fmt: skip
    result = measure(folder, settings)
    if save and (folder / "report.json").exists():
        from toolchain.report.model_report import add_speed

        add_speed(folder, result, "athena-export " + " ".join(shlex.quote(a) for a in sys.argv[1:]))
    if json:
        print_json(result)
        return
    rows = [
        (f"{name} {n}", f"{one['median']:.1f}", f"{one['mean']:.1f} +- {one['deviation']:.1f}")
        for name, table in (
            ("prefill", result["prefill"]["by_length"]),
            ("decode at", result["decode"]["by_depth"]),
        )
        for n, one in table.items()
    ]
    title = f"{folder}: {result['threads']} threads, {result['instruction_set']}"
    print_table(title, ("tokens per second", "median", "mean"), rows)
    decode = result["decode"]
    print(
        f"decode reads {decode['bytes_per_token'] / 1e6:.1f} MB a token: {decode['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{100 * decode['bandwidth_fraction']:.0f} % of the {result['read_bandwidth']['median'] / 1e9:.1f} GB/s "
        f"this machine reads"
    )
    print(f"peak memory {result['peak_rss_bytes'] / 1e6:.0f} MB, files {result['file_bytes'] / 1e6:.0f} MB")


@guarded
@with_options
def warmup(
    folder: Folder,
    machine: Annotated[
        str, typer.Option(help="Machine to compile for: this, rpi5, rpi4, aarch64, aarch64-i8mm, x86-64-v3 or avx512.")
    ] = "this",
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Folder that gets the kernels, to be taken there.")
    ] = None,
    kernels: Annotated[
        Optional[Path], typer.Option(help="Folder that such a command has made for this machine: use what is in it.")
    ] = None,
    cached: KeyValueCache = FLOATS,
    width: Width = FULL_WIDTH,
    json: Json = False,
) -> None:
    """Compile the kernels for this folder and a machine ahead of time; later starts find them on disk.

    Kernels are programs: take only those that you, or somebody you trust, has made.
    """
    from export.files.access import expanded
    from runtime_py.making import make, ready

    announce_compilation()
    start = time.perf_counter()
    if machine != "this" or output is not None:
        if output is None or kernels is not None:
            raise InputError("--machine goes with -o, the folder that gets the kernels, and not with --kernels")
        made = make(folder, machine, expanded(str(output)), cached.cache_bits, width.bits)
        elapsed = time.perf_counter() - start
        if json:
            print_json(
                {
                    "seconds": elapsed,
                    "output": str(output),
                    "machine": machine,
                    "objects": len(made),
                    "bytes": sum(made),
                }
            )
            return
        print(f"{len(made)} kernels for {machine} in {elapsed:.1f} s: {output}, {size_text(sum(made))}")
        print(f"there: athena-export warmup {folder.name} --kernels {output.name}")
        return
    why, place, taken = ready(
        folder, cached.cache_bits, width.bits, None if kernels is None else expanded(str(kernels))
    )
    elapsed = time.perf_counter() - start
    if json:
        print_json({"seconds": elapsed, "cache": place, "interpreted": why, "taken": taken})
        return
    print(f"ready after {elapsed:.1f} s; compiled kernels are in {place or 'no folder'}")
