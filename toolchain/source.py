"""Reads a Hugging Face checkpoint tensor by tensor: a local folder, or a hub name through huggingface_hub.

Only safetensors are read, never a pickle. Everything that comes out has been checked: the index names existing shards,
the shards hold the named tensors, shapes agree, values are finite.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from export.errors import InputError
from export.files import read_json

_INDEX = "model.safetensors.index.json"
_DOWNLOAD = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "merges.txt", "vocab*"]


def resolve(name: str) -> Path:
    """The local folder of a model: a path as it is, else the hub's snapshot (downloaded, or cached when offline).

    Raises InputError when the name is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: is a file; a model folder or a Hugging Face model name was expected")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=_DOWNLOAD))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name}: neither a local folder nor a model that the hub or its cache gives ({reason})"
        ) from None


class SourceModel:
    """Config and tensors of one checkpoint folder."""

    def __init__(self, folder: Path, optional_prefix: str = "") -> None:
        """`optional_prefix`: stored names may lack it, or have it in front. Raises InputError on a bad folder."""
        self.folder, self.optional_prefix = folder, optional_prefix
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._shard_of = self._index()

    def _index(self) -> dict[str, Path]:
        index_path = self.folder / _INDEX
        if index_path.exists():
            weight_map = read_json(index_path).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index_path}: field weight_map is missing or empty")
            return self._from_weight_map(index_path, weight_map)
        single = self.folder / "model.safetensors"
        if not single.exists():
            self._refuse_pickles()
            raise InputError(f"{self.folder}: no model.safetensors and no {_INDEX} in this folder")
        return dict.fromkeys(self._names(single), single)

    def _from_weight_map(self, index_path: Path, weight_map: dict[str, Any]) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        names: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise InputError(f"{index_path}: shard name {shard!r} of {tensor} must be a plain file name")
            path = self.folder / shard
            if shard not in names:
                if not path.exists():
                    raise InputError(f"{path}: this shard is missing, {_INDEX} lists it for {tensor}")
                names[shard] = set(self._names(path))
            if tensor not in names[shard]:
                raise InputError(f"{path}: tensor {tensor} is missing, {_INDEX} says it is here")
            paths[tensor] = path
        return paths

    def _refuse_pickles(self) -> None:
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt"):
            found = next(iter(sorted(self.folder.glob(pattern))), None)
            if found is not None:
                raise InputError(
                    f"{found}: pickled weights are not read (they can run code). Convert once: "
                    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
                )

    @staticmethod
    def _names(path: Path) -> list[str]:
        try:
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a complete safetensors file ({error})") from None

    def _stored_name(self, name: str) -> str | None:
        """The name as it is, else without the optional prefix, else with it."""
        for stored in (name, name.removeprefix(self.optional_prefix), self.optional_prefix + name):
            if stored in self._shard_of:
                return stored
        return None

    def has(self, name: str) -> bool:
        return self._stored_name(name) is not None

    def names(self) -> list[str]:
        """Tensor names as stored."""
        return sorted(self._shard_of)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """One tensor, float32 if it is of a floating type.

        Raises InputError when it is missing, has another shape than `shape`, or holds NaN or infinity.
        """
        stored = self._stored_name(name)
        if stored is None:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}")
        try:
            with safe_open(self._shard_of[stored], framework="pt") as file:
                value = file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._shard_of[stored]}: {name} cannot be read ({error})") from None
        if shape is not None and tuple(value.shape) != shape:
            raise InputError(
                f"{self._shard_of[stored]}: {name} has shape {list(value.shape)}, config.json asks for {list(shape)}"
            )
        if value.is_floating_point():
            value = value.float()
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"{self._shard_of[stored]}: {name} holds NaN or infinite values")
        return value

    def fingerprint(self) -> str:
        """SHA-256 over the config and the shards' sizes and tensor headers: identifies the checkpoint, cheaply."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted(set(self._shard_of.values())):
            with open(path, "rb") as file:
                header = file.read(8)
                header += file.read(min(int.from_bytes(header, "little"), 2**26))
                size = path.stat().st_size
                digest.update(path.name.encode() + header + size.to_bytes(8, "little"))
                for at in range(0, size, max(1, size // 64)):  # a sample of the values themselves
                    file.seek(at)
                    digest.update(file.read(256))
        return digest.hexdigest()
