"""Reads a checkpoint tensor by tensor: a Hugging Face folder, a GGUF file, or a hub name through huggingface_hub.

Only safetensors and GGUF are read, never a pickle. Everything that comes out has been checked: the files are those that
transformers loads, they hold every tensor that the model needs, each is stored in a known form, shapes agree, values
are finite.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.contract.errors import InputError
from export.files.access import expanded, read_json
from export.graph.archs import model_spec
from export.graph.low_rank import base_config
from toolchain.numerics.experts import experts_as_rows, packed_experts
from toolchain.source.checkpoint_files import StoredTensor, checkpoint_tensors
from toolchain.source.config import resolved_config
from toolchain.source.foreign_folders import foreign_file, without_config
from toolchain.source.gguf.files import is_gguf, only_gguf
from toolchain.source.gguf.folder import gguf_folder, gguf_of
from toolchain.source.gguf_weights import GgufWeights, gguf_weights
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings.base import Microscaled
from toolchain.source.quantization import FIELDS, source_quantization, unreadable
from toolchain.source.stacked_experts import METHOD, StackedExperts, is_stacked
from toolchain.source.stored_names import ParameterNames, is_adapter, parameter_names
from toolchain.source.stored_weights import StoredWeights, changes_activations_only, format_of
from toolchain.source.tasks import with_task
from toolchain.source.wrappers import check_quantization, left_out_of, text_name

_DOWNLOAD = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "merges.txt", "vocab*"]
_ADAPTED = "base_model."  # what PEFT puts before every name
_PIECE = 1 << 27  # bytes of rows that are read together
_NAMED = 3  # tensors that a line lists before it only counts them


def resolve(name: str) -> Path:
    """The local folder of a model: a path as it is, else the hub's snapshot (downloaded, or cached when offline).

    For a GGUF file, or a folder that holds one, it is a folder that stands for it in this process (gguf/folder.py).
    Raises InputError when the name is none of these.
    """
    path = expanded(name)
    file = only_gguf(path) if path.is_dir() else path
    if file is not None and is_gguf(file) and file.is_file():
        return gguf_folder(file)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(foreign_file(path))
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

    def __init__(self, folder: Path) -> None:
        """Raises InputError on a bad folder, and on one whose config.json names a format that cannot be read."""
        self.folder, gguf = folder, gguf_of(folder)
        self.where = folder if gguf is None else gguf.model.paths[0]  # for messages
        if not (folder / "config.json").exists():
            raise InputError(without_config(folder))
        stated = with_task(base_config(read_json(folder / "config.json")), folder)
        self._kind, self._left_out = stated.get("model_type"), left_out_of(stated)
        check_quantization(stated, FIELDS, folder / "config.json")
        self.quantization = source_quantization(stated)
        for field in FIELDS:  # what comes out is not quantized
            stated.pop(field, None)
        self.config: dict[str, Any] = resolved_config(stated, folder / "config.json" if gguf is None else self.where)
        self.aliases: dict[str, str] = {}  # names of tensors that are stored under another one only
        self._weights: StoredWeights | StackedExperts | GgufWeights
        if gguf is None:
            self._weights = self._stored_weights()
        else:
            self._weights = gguf_weights(gguf, self.config)

    def _stored_weights(self) -> StoredWeights | StackedExperts:
        found = StoredWeights(checkpoint_tensors(self.folder, self.config), self.quantization)
        stacked = [name for name in found.tensors if is_stacked(name)]
        packed = self.quantization is not None and self.quantization.method == METHOD
        kinds = model_spec(self.config).kinds() if stacked or packed else ()
        experts = next((names.experts for names in kinds if names.experts is not None), None)
        if packed and (experts is None or not experts.together):
            raise unreadable("MXFP4", f"{self.folder / 'config.json'}: quantization_config")
        return found if experts is None else StackedExperts(found, experts.count, experts.together)

    @functools.cached_property
    def _parameters(self) -> ParameterNames:
        return parameter_names(self.config, len(self._weights.tensors))

    @functools.cached_property
    def _stored(self) -> dict[str, str]:
        """Stored names by parameter. Raises InputError when a tensor is missing or in a form that cannot be read."""
        self._refuse_adapters()
        found: dict[str, str] = {}
        for name, text in self._text_names.items():
            parameter = self._parameters.of(text)
            if parameter is None:
                self._refuse_parts_of_weights(name, text)
            elif parameter in found:
                raise InputError(f"{self.where}: {found[parameter]} and {name} are stored for one and the same tensor")
            else:
                found[parameter] = name
        for parameter in sorted(self._parameters.required - found.keys()):
            tied = (other for other, first in self._parameters.expected.items() if first == parameter)
            stored = next((found[other] for other in tied if other in found), None)
            if stored is None:
                raise InputError(f"{self.where}: the checkpoint has no tensor {parameter}{self._alike(parameter)}")
            found[parameter] = stored  # as transformers: of an embedding and its tied head either may be stored
        for name in found.values():
            if self._weights.check(name) and self._parameters.transposed and not self._weights.in_layout:
                raise unreadable(f"weights [in, out] as {self._weights.check(name)}", f"{self.where}: {name}")
        return found

    @functools.cached_property
    def _text_names(self) -> dict[str, str]:
        """What each stored tensor is called in a model of text alone; those of other parts are not here."""
        names = self._weights.names()
        if self._left_out is None:
            return {name: name for name in names}
        return {name: text for name in names if (text := text_name(name)) is not None}

    def _refuse_adapters(self) -> None:
        """Of all that may be wrong with the names, an adapter explains most: it is said first."""
        for name in self._weights.names():
            if is_adapter(name) and (name in self._text_names or name.startswith(_ADAPTED)):
                raise InputError(
                    f"{self.where}: {name} belongs to an adapter that was not merged (LoRA and its kin). Merge it "
                    "with merge_and_unload() of peft and save the model again"
                )

    def _alike(self, parameter: str) -> str:
        """What to add where a parameter is missing: the stored name that ends like it."""
        alike = (name for name in self._weights.names() if name.endswith(f".{parameter}"))
        return next((f"; it has {name}, a name that transformers does not know" for name in alike), "")

    def _refuse_parts_of_weights(self, name: str, text: str) -> None:
        """What lies beside a weight, or in its place, and is not known would change it. text: the text part's name."""
        if self._parameters.is_of_expert(text):
            raise InputError(f"{self.where}: {name} belongs to an expert that the model of config.json does not have")
        if self._parameters.harmless(text) or not self._parameters.beside_a_parameter(text):
            return
        module = name.rpartition(".")[0].removesuffix(".weight")
        title = format_of(other for other in self._weights.tensors if other.startswith(f"{module}."))
        if title is not None:
            raise unreadable(title, f"{self.where}: {name}")
        raise InputError(f"{self.where}: {name} lies beside a weight and is not known; it may change the weight")

    def notes(self) -> list[str]:
        """What a user should know about the checkpoint, a line each."""
        lines = []
        if isinstance(self._weights, GgufWeights):
            lines += self._weights.notes()
        if self.stored_as:
            lines.append(f"{self.where}: the weights are stored as {self.stored_as}; they are read as float32")
        if self._left_out is not None:
            lines.append(
                f"{self.where}: of this {self._kind} model the text part ({self.config['model_type']}) is read; "
                f"{self._left_out} is left out"
            )
        used, names = set(self._stored.values()), self._text_names
        left = [name for name, text in names.items() if name not in used and not self._parameters.harmless(text)]
        if left:
            lines.append(f"{self.where}: left out, the model has no place for them (as in transformers): {_some(left)}")
        activations = [name for name in names if name not in used and changes_activations_only(name)]
        if activations:
            lines.append(f"{self.where}: scales of activations or of the cache are not used: {_some(activations)}")
        return lines

    def print_notes(self) -> None:
        for line in self.notes():
            print(line, file=sys.stderr)

    @functools.cached_property
    def stored_as(self) -> str | None:
        """How the weights are stored where they are quantized; None for plain floats."""
        kinds = sorted({self._weights.check(name) for name in self._stored.values()} - {""})
        return " and ".join(kinds) or None

    def _stored_name(self, name: str) -> str | None:
        """The tensor stored for this name of a parameter, in any spelling that transformers knows."""
        name = self.aliases.get(name, name)
        return self._stored.get(self._parameters.of(name) or name)

    def has(self, name: str) -> bool:
        return self._stored_name(name) is not None

    def names(self) -> list[str]:
        """Names of the model's tensors as stored."""
        return sorted(set(self._stored.values()))

    def packable(self) -> dict[str, torch.Tensor]:
        """All tensors of parameters() in the form that transformers' loader takes: that of its checkpoints."""
        found = {self._parameters.packable_name(name): self.tensor(name) for name in self.parameters()}
        if self._parameters.as_rows:
            return experts_as_rows(found)
        return packed_experts(found) if self._parameters.together else found

    def parameters(self) -> list[str]:
        """Names of the model's tensors as transformers names them."""
        return sorted(self._stored)

    def size(self, name: str) -> int:
        """Numbers of a tensor. Raises InputError when it is missing."""
        return math.prod(self._header(name).shape)

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises InputError when a tensor is missing or has another shape; reads headers alone."""
        self._header(name, shape)

    def _header(self, name: str, shape: tuple[int, ...] | None = None) -> StoredTensor:
        stored = self._stored_name(name)
        if stored is None:
            raise InputError(f"{self.where}: the checkpoint has no tensor {name}")
        header = self._weights.tensors[stored]
        if shape is not None and header.shape != shape:
            raise InputError(
                f"{header.path}: {name} has shape {list(header.shape)}, config.json asks for {list(shape)}"
            )
        return header

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """One tensor, float32.

        Raises InputError when it is missing, has another shape than `shape`, or holds NaN or infinity.
        """
        self._header(name, shape)
        return self._weights.read(str(self._stored_name(name)))

    def row_pieces(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
        """A matrix in pieces of rows, float32, each with the number of its first row; shape and errors as of tensor().

        Where it lies as plain floats, no more than a piece is in memory.
        """
        stored = self._stored_name(name)
        header = None if stored is None else self._weights.tensors[stored]
        step = max(1, _PIECE // (4 * max(shape[1], 1)))
        if stored is None or header is None or header.shape != shape or self.stored_form(name) or shape[0] <= step:
            yield 0, self.tensor(name, shape)
            return
        for start in range(0, shape[0], step):
            yield start, self._weights.read_rows(stored, slice(start, min(start + step, shape[0])))

    def rows(self, name: str, shape: tuple[int, int], rows: np.ndarray) -> torch.Tensor:
        """Some rows of a matrix, float32 [rows, columns]; rows: int64, rising; shape and errors as of tensor()."""
        found, numbers = [], torch.from_numpy(rows)
        for start, piece in self.row_pieces(name, shape):
            own = numbers[(numbers >= start) & (numbers < start + len(piece))] - start
            found.append(piece[own])
        return torch.cat(found)

    def stored_form(self, name: str) -> str:
        """How a tensor is stored: "" for plain floats, else a title. Raises InputError when the tensor is missing."""
        stored = self._stored_name(name)
        if stored is None:
            raise InputError(f"{self.where}: the checkpoint has no tensor {name}")
        return self._weights.check(stored)

    def group_codes(self, name: str) -> GroupCodes | None:
        """What is stored of a tensor where that is codes with scales that groups of columns share, else None.

        Raises InputError when the tensor is missing, or what lies beside it does not fit.
        """
        stored = self._stored_name(name)
        if stored is None:
            raise InputError(f"{self.where}: the checkpoint has no tensor {name}")
        return self._weights.group_codes(stored)

    def mxfp4_blocks(self, name: str) -> Microscaled | None:
        """The codes and exponents of a matrix that is stored in MXFP4, else None; raises as group_codes() does."""
        stored = self._stored_name(name)
        if stored is None:
            raise InputError(f"{self.where}: the checkpoint has no tensor {name}")
        return self._weights.mxfp4(stored)

    def fingerprint(self) -> str:
        """SHA-256 over the config and the shards' sizes and tensor headers: identifies the checkpoint, cheaply."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        if self.quantization is not None:
            digest.update(json.dumps(self.quantization.raw, sort_keys=True).encode())
        for path in sorted({tensor.path for tensor in self._weights.tensors.values()}):
            with open(path, "rb") as file:
                header = file.read(8)
                header += file.read(min(int.from_bytes(header, "little"), 2**26))
                size = path.stat().st_size
                digest.update(path.name.encode() + header + size.to_bytes(8, "little"))
                for at in range(0, size, max(1, size // 64)):  # a sample of the values themselves
                    file.seek(at)
                    digest.update(file.read(256))
        return digest.hexdigest()


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
