"""`adapter`: adapters of a model folder, added, listed and removed. Needs no torch but for pickles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import guarded, print_json, print_table
from toolchain.system.units import size_text

app = typer.Typer(
    help="Adapters of a model folder: LoRA and bottlenecks beside its shared weights.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Model folder made by `export`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("add")
@guarded
def add(
    folder: Folder,
    source: Annotated[
        str, typer.Argument(metavar="NAME=FOLDER", help="Its name here, and its folder (PEFT, AdapterHub).")
    ],
    bits: Annotated[int, typer.Option(help="Of a number of the factors: 16, 8 or 32.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Replace one of this name.")] = False,
    json: Json = False,
) -> None:
    """Add a LoRA folder of PEFT, or for encoders a bottleneck folder of AdapterHub, as the adapter NAME.

    What exists stays where the folder does not fit.
    """
    from export.files.lock import locked
    from toolchain.adapters.adding import add_adapter, named_folders

    ((name, place),) = named_folders([source], "adapter add").items()
    _is_model(folder)
    with locked(folder.resolve()):
        adapter = add_adapter(folder, name, place, bits, force)
    told = {"name": name, "bits": bits, "rank": adapter.rank(), "layers": len(adapter.terms), "bytes": adapter.nbytes()}
    if json:
        print_json(told)
        return
    print(f"{folder}: adapter {name}, rank {told['rank']} in {told['layers']} layers, {size_text(adapter.nbytes())}")


@app.command("list")
@guarded
def list_(folder: Folder, json: Json = False) -> None:
    """The adapters of a model folder."""
    from export.adapters.store import adapter_names, read_adapter

    _is_model(folder)
    found = [read_adapter(folder, name) for name in adapter_names(folder)]
    if json:
        entries = [
            {"name": one.name, "kind": one.kind, "bits": one.bits, "rank": one.rank(),
             "layers": len(one.terms), "bytes": one.nbytes(),
             "source": dict(one.source)}
            for one in found
        ]  # fmt: skip
        print_json({"folder": str(folder), "adapters": entries})
        return
    if not found:
        print(f"{folder} has no adapters", file=sys.stderr)
        return
    rows = [
        (one.name, one.kind, str(one.rank()), str(len(one.terms)), str(one.bits), size_text(one.nbytes()),
         str(one.source.get("base_model_name_or_path", "")))
        for one in found
    ]  # fmt: skip
    print_table("", ("adapter", "kind", "rank", "layers", "bits", "size", "trained on"), rows)


@app.command("remove")
@guarded
def remove(folder: Folder, name: Annotated[str, typer.Argument(help="An adapter of the folder.")]) -> None:
    """Remove an adapter. The shared weights stay as they are."""
    from export.adapters.stock import remove_stock_files
    from export.adapters.store import remove_adapter
    from export.files.lock import locked

    _is_model(folder)
    with locked(folder.resolve()):
        remove_adapter(folder, name)
        remove_stock_files(folder)
    print(f"{folder}: adapter {name} removed")


@app.command("onnx")
@guarded
def onnx(folder: Folder) -> None:
    """Write model_adapters.onnx and a .onnx_adapter file for each, for stock onnxruntime and onnxruntime-genai."""
    from export.adapters.stock import write_stock_files
    from export.files.lock import locked

    _is_model(folder)
    with locked(folder.resolve()):
        written = write_stock_files(folder)
    for path in written:
        print(f"{path}: {size_text(path.stat().st_size)}")


def _is_model(folder: Path) -> None:
    from export.contract.errors import InputError

    if not (folder / "model.onnx").is_file():
        raise InputError(f"{folder}: no model.onnx; a folder made by `export` was expected")
