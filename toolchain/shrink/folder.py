"""Writes a Hugging Face folder of floats: config.json, weights in shards, tokenizer and generation files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.contract.errors import InputError
from export.files.access import write_json
from export.graph.low_rank import LOW_RANK, RECORD
from export.model_folder import copy_tokenizer
from toolchain.source.checkpoint import SourceModel
from toolchain.source.checkpoint_files import INDEX, SINGLE
from toolchain.source.empty_model import empty_model
from toolchain.source.tokenizer import write_built_tokenizer

_SHARD = 1 << 30  # bytes of a file, about
_NOT_WRITTEN = ("auto_map", "quantization_config", "torch_dtype", "transformers_weights")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def stored_dtype(source: SourceModel) -> str:
    """The type that a smaller model's weights are stored in: the source's, float16 where that has none of floats.

    Raises InputError for a config.json that names none.
    """
    stated = source.config.get("dtype") or source.config.get("torch_dtype") or "float32"
    if not isinstance(stated, str):
        raise InputError(f"{source.folder / 'config.json'}: dtype is {stated!r:.40}, which is no type's name")
    return "float16" if source.stored_as or stated not in DTYPES else str(stated)


def write_folder(
    folder: Path, source: SourceModel, config: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], dtype: str
) -> int:
    """Write a new folder of these tensors; tokenizer and generation files are the source's. Parameters in it.

    Complete or not there: it is made under another name first. Raises InputError for a number that dtype has none for.
    """
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    count = _write_weights(building, tensors, dtype)
    known = {name: value for name, value in config.items() if name not in _NOT_WRITTEN}
    if config.get(RECORD) is not None:
        known["model_type"] = LOW_RANK  # transformers is to refuse it
    write_json(building / "config.json", {**known, "architectures": [_class_name(config)], "dtype": dtype})
    copy_tokenizer(source.folder, building)
    write_built_tokenizer(source.folder, building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return count


def _class_name(config: dict[str, Any]) -> str:
    return type(empty_model(config)).__name__


def _write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], dtype: str) -> int:
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = count = total = 0

    def flush() -> None:
        nonlocal held, size
        save_file(held, folder / f"{len(shards)}.safetensors", {"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for name, value in tensors:
        held[name] = _stored(name, value, dtype)
        size += held[name].nbytes
        total += held[name].nbytes
        count += value.numel()
        if size >= _SHARD:
            flush()
    if held:
        flush()
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / SINGLE)
        return count
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return count


def _stored(name: str, value: torch.Tensor, dtype: str) -> torch.Tensor:
    made = value.detach().to(DTYPES[dtype]).contiguous()
    if not bool(torch.isfinite(made).all()):
        raise InputError(f"{name} has numbers that {dtype} cannot hold")
    return made
