"""Adapters trained elsewhere: which reader a folder is for, by its adapter_config.json."""

from __future__ import annotations

from pathlib import Path

from export.adapters.bottleneck import bottleneck_sites
from export.adapters.folder import folder_sites
from export.adapters.store import Adapter
from export.artefacts.graph import Graph
from export.files.access import read_json
from toolchain.adapters.hub_config import is_bottleneck
from toolchain.adapters.hub_folder import check_bottleneck_folder, read_bottleneck
from toolchain.adapters.peft_config import CONFIG
from toolchain.adapters.peft_folder import check_folder, read_lora


def read_adapter_folder(folder: Path, name: str, graph: Graph, bits: int) -> Adapter:
    """A LoRA folder of PEFT or a bottleneck folder of the package `adapters`, for a model folder's graph.

    bits: 8, 16 or 32 of a factor's numbers. Raises InputError on a folder that is neither, hostile, for another model,
    or cannot be honoured.
    """
    if is_bottleneck(read_json(folder / CONFIG, folder)):
        return read_bottleneck(folder, name, bottleneck_sites(graph), bits)
    return read_lora(folder, name, folder_sites(graph), bits)


def check_adapter_folder(folder: Path) -> None:
    """What can be said of a folder without the model. Raises InputError as read_adapter_folder() does."""
    if is_bottleneck(read_json(folder / CONFIG, folder)):
        check_bottleneck_folder(folder)
    else:
        check_folder(folder)
