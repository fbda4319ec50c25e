"""`lower` and `native`: what other runtimes are given. Needs no torch, but onnx_ir, or the ziglang package."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from targets.lowering import names
from toolchain.cli.common import guarded, print_json


@guarded
def lower(
    folder: Annotated[Path, typer.Argument(help="Model folder made by `export`.")],
    target: Annotated[str, typer.Option(help=f"{', '.join(names())} or a .toml file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    reencode: Annotated[
        bool, typer.Option(help="MatMulNBits: 4 bits also for uneven codebooks; smaller, not exact.")
    ] = False,
    accuracy_level: Annotated[
        int, typer.Option(help="MatMulNBits: 4 int8 activations, 1 float32; -1 the target's.")
    ] = -1,
    machine: Annotated[
        str, typer.Option(help="Target native: x86_64 or aarch64 Linux; this machine unless told.")
    ] = "",
    force: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write FOLDER in the form a runtime likes best. The original stays the truth."""
    from export.contract.errors import InputError
    from export.files.access import MANIFEST, read_json
    from export.files.lock import locked
    from export.files.replace import building_folder, install_folder, output_folder, recover, refuse_existing
    from export.lowering.check import describe
    from export.lowering.folder import Lowering, write_lowered_folder
    from export.lowering.matmul_nbits import NBits
    from export.native.build import this_machine
    from targets.lowering import open_lowering
    from toolchain.system.progress import Reporter

    try:
        data = open_lowering(target)
    except ValueError as error:
        raise InputError(str(error)) from None
    given = {} if accuracy_level < 0 else {"accuracy_level": accuracy_level}
    nbits = NBits(**{**data.get("nbits", {}), **given}, reencode=reencode)
    passes, share = tuple(data.get("passes", [])), data.get("share_cache", False)
    library = data.get("library", False)
    if machine and not library:
        raise InputError(f"--machine has no meaning for --target {target}, which holds no native library")
    built_for = (machine or this_machine()) if library else None
    lowering = Lowering(Path(target).stem, passes, nbits, share, **data.get("runtime", {}), machine=built_for)
    if reencode and "matmul_nbits" not in lowering.passes:
        raise InputError(f"--reencode has no meaning for --target {target}, which keeps the codebooks")
    place = output_folder(output, force, [folder, *([Path(target)] if target.endswith(".toml") else [])])
    with locked(place):
        recover(place)
        refuse_existing(place, force)
        read_json(folder / MANIFEST)  # a mistyped source deletes nothing
        built = building_folder(place)
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        try:
            with Reporter("Lowering", 1, quiet=json) as report:

                def progress(name: str, index: int, count: int) -> None:
                    report.total = count
                    report.step(name)

                done = write_lowered_folder(folder, built, lowering, progress)
            install_folder(built, place, force)
        finally:
            shutil.rmtree(built, ignore_errors=True)
    if json:
        print_json(done)
        return
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {_summary(done)}{size / 1e6:.1f} MB; {describe(done['check'])}")


def _summary(done: dict) -> str:  # type: ignore[type-arg]
    parts = []
    if done.get("attention_nodes"):
        parts.append(f"{done['attention_nodes']} GroupQueryAttention")
    if done.get("library"):
        parts.append(f"{done['library']['operators']} operators by {done['library']['file']}")
    matrices = done.get("matrices", [])
    for bits in (4, 8):
        exact = [m for m in matrices if m["bits"] == bits and m["exact"]]
        lossy = [m for m in matrices if m["bits"] == bits and not m["exact"]]
        if exact:
            parts.append(f"{len(exact)} MatMulNBits of {bits} bits, exact")
        if lossy:
            worst = max(m["error"] for m in lossy)
            parts.append(f"{len(lossy)} of {bits} bits encoded again, weights off by up to {100 * worst:.1f} %")
    for (operator, reason), count in Counter((k["operator"], k["reason"]) for k in done.get("kept", ())).items():
        parts.append(f"{count} {operator} kept ({reason})")
    return ", ".join(parts) + (", " if parts else "")


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
