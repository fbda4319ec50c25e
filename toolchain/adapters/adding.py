"""Puts an adapter into a model folder: what `adapter add` and `export --adapter` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.adapters.factors import BITS
from export.adapters.folder import folder_sites
from export.adapters.sites import Site
from export.adapters.stock import remove_stock_files
from export.adapters.store import ADAPTERS, RECORD, Adapter, check_name, remove_adapter, write_adapter
from export.artefacts.manifest import read_manifest
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.files.access import MANIFEST, expanded
from toolchain.adapters.reading import check_adapter_folder, read_adapter_folder
from toolchain.settings.preparation import RESIDUAL, VALUES, PreparationSettings

# Settings, former names among them, that give the layers other inputs or outputs than the source's, so that factors
# trained for it do not fit.
_ROTATIONS = (VALUES, RESIDUAL)
_TURNED = {"rotation": _ROTATIONS, "incoherence": _ROTATIONS, "equalize": (True,)}


def named_folders(given: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=FOLDER texts. Raises InputError for one that is none, a name that cannot be, or one that is there twice."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise InputError(f"{option} must be NAME=FOLDER, such as sql=./sql-lora, not {text[:100]!r}")
        if check_name(name) in found:
            raise InputError(f"{option}: {name} is given twice")
        found[name] = expanded(folder)
        if not found[name].is_dir():
            raise InputError(f"{option}: {folder[:200]}: no such folder")
    return found


def check_asked(given: Sequence[str], bits: int, settings: PreparationSettings) -> dict[str, Path]:
    """What `export` is asked for, before the hours that it may take. Raises InputError as add_adapter() will."""
    found = named_folders(given, "--adapter")
    check_bits(bits, "--adapter-bits")
    if found and (settings.equalize or any(settings.rotates(what) for what in _ROTATIONS)):
        raise InputError(
            "--adapter: --rotation and --equalize turn what the layers read; adapters need an export without"
        )
    for folder in found.values():
        check_adapter_folder(folder)
    return found


def check_bits(bits: int, option: str) -> int:
    if bits not in BITS:
        raise InputError(f"{option} must be one of {', '.join(map(str, BITS))}, not {bits}")
    return bits


def check_backbone(folder: Path) -> None:
    """Raises InputError where the folder's layers do not read what those of its source do."""
    if not (folder / MANIFEST).exists():
        return
    settings = read_manifest(folder).get("settings", {})
    for name, values in _TURNED.items():
        given = settings.get(name)
        parts = given.split(",") if isinstance(given, str) else [given]
        if any(value in parts for value in values):
            raise InputError(
                f"{folder}: was exported with --{name}, which turns what its layers read; adapters fit a folder "
                "exported without"
            )


def add_adapter(folder: Path, name: str, source: Path, bits: int = 16, force: bool = False) -> Adapter:
    """Read an adapter's folder (reading.py) and write it into a model folder as the adapter `name`.

    bits: of a number of a factor, 8, 16 or 32. force: replace one of this name. Raises InputError; what was there
    stays then.
    """
    check_name(name)
    check_bits(bits, "--bits")
    there = (folder / ADAPTERS / name / RECORD).exists()
    if there and not force:
        raise InputError(f"{folder}: has an adapter {name}; --force replaces it")
    check_backbone(folder)
    adapter = read_adapter_folder(source, name, read_graph(folder), bits)
    remove_stock_files(folder)
    if there:
        remove_adapter(folder, name)
    write_adapter(folder, adapter)
    return adapter


def sites_of(folder: Path) -> tuple[Site, ...]:
    """Products of a model folder's graph. Raises InputError."""
    return folder_sites(read_graph(folder))
