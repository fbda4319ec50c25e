"""`bench` and `warmup`: speed of a model folder on this machine, and compiling its kernels ahead of time."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import announce_compilation, guarded, print_json, print_table
from toolchain.cli.signature import with_options
from toolchain.settings.execution import AS_IT_IS, FLOATS, FULL_WIDTH, Execution, KeyValueCache, Width
from toolchain.settings.serving import MEASURED, BenchOptions

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
def warmup(folder: Folder, cached: KeyValueCache = FLOATS, width: Width = FULL_WIDTH, json: Json = False) -> None:
    """Compile the kernels for this folder and machine ahead of time; later starts find them on disk."""
    from runtime_py.load import open_model
    from runtime_py.system.jit_cache import cache_folder

    announce_compilation()
    start = time.perf_counter()
    model, why = open_model(folder, cache_bits=cached.cache_bits, bits=width.bits)
    model.forward(model.new_state(), [0], last_only=True)
    if not why:
        model.step([model.new_state(), model.new_state()], [0, 0])  # what a server with several clients runs
    elapsed = time.perf_counter() - start
    if json:
        kept = cache_folder()
        print_json({"seconds": elapsed, "cache": None if kept is None else str(kept), "interpreted": why})
        return
    print(f"ready after {elapsed:.1f} s; compiled kernels are in {cache_folder() or 'no folder'}")
