"""`sparsify`: attention that reads a fixed number of keys, however long the text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from export.contract.errors import InputError
from export.files.access import read_json
from export.files.lock import locked
from toolchain.cli.common import guarded, print_json
from toolchain.cli.signature import with_options
from toolchain.settings.sparsifying.sparsify import LongTextSettings, SparsifySettings
from toolchain.system.units import figure

NO_TEXT = LongTextSettings()


@guarded
@with_options
def sparsify(
    folder: Annotated[Path, typer.Argument(help="Model folder made by `export`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    settings: SparsifySettings,
    measured: LongTextSettings = NO_TEXT,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Let every query of FOLDER read at most --keys keys: OUT takes the same time for a token at any length."""
    from export.files.replace import building_folder, install_folder, output_folder, recover, refuse_existing
    from export.graph.archs import model_spec
    from toolchain.report.model_report import REPORT_HTML, new_report, save_report
    from toolchain.sparsify.folder import check_source, write_sparse_folder
    from toolchain.sparsify.maps import maps_of
    from toolchain.sparsify.quality import compare, windows_to_measure

    layers, keys = check_source(folder), settings.pages.keys
    beyond = [number for number in settings.dense if number >= layers]
    if beyond:
        raise InputError(f"--dense-layers {beyond[0]}: the layers with attention are 0 to {layers - 1}")
    positions = model_spec(read_json(folder / "config.json")).context_length
    if keys >= positions:
        raise InputError(f"--keys {keys} leaves nothing out: the model has {positions} positions; give fewer")
    windows = None
    if measured.text is not None:
        windows = windows_to_measure(folder, keys, measured, positions)
    place = output_folder(output, force, [folder, *([measured.text] if measured.text else [])])
    with locked(place):
        recover(place)
        refuse_existing(place, force)
        built = building_folder(place)
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        try:
            done = write_sparse_folder(folder, built, settings.pages, settings.dense)
            if windows is not None:
                done["quality"] = compare(built, folder, windows, keys, json)
            report = new_report(built)
            report["sparse"] = {name: done[name] for name in ("keys", "layers", "quality") if name in done}
            if windows is not None:
                report["sparse"]["maps"] = maps_of(built, windows[0])  # None where memory is short
            save_report(built, report)
            install_folder(built, place, force)
        finally:
            shutil.rmtree(built, ignore_errors=True)
    if json:
        print_json(done)
        return
    print(f"{output}: {done['layers']} of {layers} layers read at most {keys:,} keys")
    if "quality" in done:
        print(_described(done["quality"], keys))
    print(f"report: {output / REPORT_HTML}")


def _described(quality: dict[str, Any], keys: int) -> str:
    return (
        f"perplexity {figure(quality['perplexity'], 4)}, {figure(quality['ratio'], 4)} times that of all keys; "
        f"KL {figure(quality['kl'], 3)}; {100 * quality['top1_agreement']:.1f} % the same token "
        f"({quality['tokens']:,} positions behind {keys:,} in windows of {quality['window']:,})"
    )
