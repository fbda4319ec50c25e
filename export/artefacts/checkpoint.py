"""The quantized checkpoint on disk: written by toolchain, read by the graph builder.

A folder holds the source's config.json with every field, its tokenizer files as they came, `athena.json`, and one
safetensors shard per transformer block plus one for what lies outside the blocks. A shard is written to a temporary
file and renamed, and carries the records of its tensors in its own metadata, so that a shard that exists is complete.

Tensor names are Hugging Face module names with a suffix, the name of a part: those of the matrix's format
(export/contract/formats/: `.codes`, `.codebook`, `.scale`, ...; a part that is stored as codes itself has
`.scale.codes`, `.scale.codebook`, `.scale.scale`), `.lowrank_a` [r, K] and `.lowrank_b` [N, r] for a residual
W ~ codes + b @ a, `.outlier_gaps` and `.outlier_values` [n] for weights stored apart, `.weight` and `.bias` for what is
not quantized. `.input_unit` [1] of a layer, `key_unit` and `value_unit` ([1] or [kv_heads]) of a block say what one
step of integer activations and cached integers is worth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from export.artefacts.manifest import read_manifest
from export.artefacts.records import TensorRecord
from export.contract.errors import InputError
from export.files.access import MANIFEST, checked_path, read_json, replacing

FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)  # 1: records with one flat list of fields, `layers` for what is now `blocks`
OUTSIDE_SHARD = "outside.safetensors"
_MAX_BLOCKS = 10_000


def block_shard(block: int) -> str:
    return f"block-{block:05d}.safetensors"


def shard_names(blocks: int, prefix: str = "") -> list[str]:
    """All shards of a checkpoint with so many blocks, in the order they are written."""
    return [prefix + name for name in (*map(block_shard, range(blocks)), OUTSIDE_SHARD)]


def write_shard(path: Path, tensors: dict[str, np.ndarray], records: list[TensorRecord]) -> None:
    """Write one shard atomically, with the records of its tensors in the metadata.

    Raises InputError for a number that is not finite: the source's weights, or what it computes, are too large.
    """
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"{name}: holds numbers beyond {array.dtype}; the layer's weights or inputs are too large")
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"athena": json.dumps([record.to_json() for record in records])}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def read_shard_records(path: Path) -> list[TensorRecord]:
    """Records of one shard. Raises InputError when the file is not a complete shard of ours."""
    try:
        with safe_open(checked_path(path, folder=path.parent), framework="numpy") as file:
            return [TensorRecord.from_json(r) for r in json.loads((file.metadata() or {})["athena"])]
    except InputError:
        raise
    except (SafetensorError, OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a complete shard of a quantized checkpoint ({error})") from None


class StoredTensors(Protocol):
    """What the exporter needs of a quantized checkpoint."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    records: dict[str, TensorRecord]

    def has(self, name: str) -> bool:
        """Whether the tensor or matrix of this name is stored."""

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part of a record, e.g. tensor("model.layers.0.mlp.up_proj", ".codes")."""


class QuantizedCheckpoint:
    """Read access to a complete quantized checkpoint; tensors are read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the manifest or a shard is missing, incomplete or of another format version."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        version = self.manifest.get("format_version")
        if version not in READ_VERSIONS:
            readable = " and ".join(map(str, READ_VERSIONS))
            raise InputError(f"{folder / MANIFEST}: format_version is {version!r}, this tool reads {readable}")
        self.config = read_json(folder / "config.json")
        self.records: dict[str, TensorRecord] = {}
        self._shard_of: dict[str, Path] = {}
        name = "layers" if version == 1 else "blocks"
        blocks, prefix = self.manifest.get(name), self.manifest.get("shard_prefix", "")
        if type(blocks) is not int or not 1 <= blocks <= _MAX_BLOCKS:
            raise InputError(
                f"{folder / MANIFEST}: {name} must be a whole number from 1 to {_MAX_BLOCKS}, not {blocks!r}"
            )
        if not isinstance(prefix, str) or Path(f"{prefix}x").name != f"{prefix}x" or "\0" in prefix:
            raise InputError(f"{folder / MANIFEST}: shard_prefix {prefix!r} is not the start of a file name")
        for name in shard_names(blocks, prefix):
            path = folder / name
            if not path.exists():
                raise InputError(f"{path}: this shard is missing; run `athena-export quantize` again to finish it")
            for record in read_shard_records(path):
                self.records[record.name] = record
                self._shard_of[record.name] = path

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part of a record, e.g. tensor("model.layers.0.mlp.up_proj", ".codes")."""
        path = self._shard_of[record_name]
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(record_name + suffix)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {record_name}{suffix} cannot be read ({error})") from None
