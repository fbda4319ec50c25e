"""Quantized checkpoint to a complete model folder with its report, built beside the destination."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.artefacts.checkpoint import StoredTensors
from export.files.replace import building_folder
from export.model_folder import write_model_folder
from toolchain.report.model_report import new_report, save_report
from toolchain.system.progress import Reporter


def package_checkpoint(checkpoint: StoredTensors, destination: Path, quiet: bool = False) -> Path:
    """Build the model folder in a hidden folder next to `destination`; the caller moves it into place.

    Nothing is left behind when it fails. Raises InputError when the checkpoint does not fit its config.
    """
    built = building_folder(destination)
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    try:
        with Reporter("Packaging", 1, quiet) as report:

            def progress(name: str, index: int, count: int) -> None:
                report.total = count
                report.step(name)

            write_model_folder(checkpoint, built, progress)
        save_report(built, new_report(built))
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    return built
