"""Which files of a folder hold the weights: those that transformers would load, and the headers of their tensors.

transformers (modeling_utils, _get_resolved_checkpoint_files) takes the file that config.json names in
`transformers_weights`, else model.safetensors, else the shards of model.safetensors.index.json. Of shards it takes
every tensor, in the order of the files' names, so that the last file wins where two hold the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from export.contract.errors import InputError
from export.files.access import checked_path, read_json
from toolchain.source.foreign_folders import refuse_adapter, without_weights

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored, and how."""

    path: Path
    dtype: str  # as safetensors names it: F32, BF16, F8_E4M3, I8, ...
    shape: tuple[int, ...]


def checkpoint_tensors(folder: Path, config: dict[str, Any]) -> dict[str, StoredTensor]:
    """The stored tensors by name.

    Raises InputError when the folder holds something else than a whole checkpoint in safetensors.
    """
    refuse_adapter(folder)
    if any(_DISTRIBUTED.fullmatch(path.name) for path in folder.glob("shard-*.safetensors")):
        raise InputError(
            f"{folder}: holds a distributed checkpoint (shard-*-model-*.safetensors), which is not read. Convert once: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    path = _entry(folder, config)
    if path.name.endswith(".index.json"):
        return _of_index(path)
    return dict(_of_file(path))


def _entry(folder: Path, config: dict[str, Any]) -> Path:
    """The weights file, or the index of several."""
    named = config.get("transformers_weights")
    if named is not None:
        return _named(folder, named)
    for name in (SINGLE, INDEX):
        if (folder / name).exists():
            return folder / name
    raise InputError(without_weights(folder))


def _named(folder: Path, named: Any) -> Path:
    field = "config.json: transformers_weights"
    if not isinstance(named, str) or Path(named).name != named:
        raise InputError(f"{field} must be a plain file name, not {named!r}")
    if not named.endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{field} must name a .safetensors file or a .safetensors.index.json, not {named!r}")
    if not (folder / named).exists():
        raise InputError(f"{folder / named}: this file is missing, {field} names it")
    return folder / named


def _of_index(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: field weight_map is missing or empty")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(_shards(index, weight_map))):
        tensors |= _of_file(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError(f"{index.parent / shard}: tensor {name} is missing, {index.name} says it is here")
    return tensors


def _shards(index: Path, weight_map: dict[str, Any]) -> Iterator[str]:
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{index}: shard name {shard!r} of {name} must be a plain file name")
        if not (index.parent / shard).exists():
            raise InputError(f"{index.parent / shard}: this shard is missing, {index.name} lists it for {name}")
        yield shard


def _of_file(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    checked_path(path, folder=path.parent)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                header = file.get_slice(name)
                yield name, StoredTensor(path, header.get_dtype(), tuple(header.get_shape()))
    except (SafetensorError, OSError) as error:
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise InputError(
                f"{path}: a git-lfs pointer, not the weights themselves; fetch them with `git lfs pull`"
            ) from None
        raise InputError(f"{path}: not a complete safetensors file ({error})") from None
