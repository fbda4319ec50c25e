"""The small files of a GGUF model as a folder: config.json, tokenizer and chat template, as transformers makes them.

transformers reads them out of the metadata (`gguf_file=`). It gets a copy of the metadata without any tensor, alone in
a folder of its own: it believes every count, and takes files that lie beside a GGUF for a part of it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import write_bytes, write_json
from export.files.foreign import foreign
from runtime_py.text.tokenizing import boundary
from toolchain.source.gguf.files import GgufModel, open_gguf, parts
from toolchain.source.gguf.header import GgufHeader

_METADATA = "metadata.gguf"
_TOKENS = "tokenizer.ggml.tokens"
_NEWER = ("lfm2",)  # of the architectures that transformers reads in its newer way, those whose weights it only renames
_UNTIED = ("falcon", "bloom")  # families whose head is tied in transformers' rule although it is stored
_NOT_IN_A_CONFIG = ("_model_name_or_path", "unk_token_id")  # no fields of a config.json


@dataclass(frozen=True)
class GgufFolder:
    """A model, and the folder in the place for temporary files that stands for it as long as the process lives."""

    model: GgufModel
    folder: Path
    architecture: str  # as the file says
    raw: dict[str, Any]  # of its config, what transformers' own rules for the weights look at


_FOLDERS: dict[Path, GgufFolder] = {}


def gguf_of(folder: Path) -> GgufFolder | None:
    """The GGUF model that a folder stands for, where gguf_folder() has made it."""
    return _FOLDERS.get(folder)


def gguf_folder(path: Path) -> Path:
    """The folder that stands for the model of a GGUF file, or of one of its parts.

    It has no weights; SourceModel takes those from the file. Raises InputError, in one line, for a file that is
    damaged, of a family that transformers cannot rebuild, or without a tokenizer that it can.
    """
    stamps = [(part.resolve(), part.stat().st_size, part.stat().st_mtime_ns) for part in parts(path)]
    return _made(path, tuple(stamps)).folder


@functools.lru_cache(maxsize=8)
def _made(path: Path, stamps: tuple[tuple[Path, int, int], ...]) -> GgufFolder:
    """stamps: what tells one content of the files from another."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InputError(f"{path}: a GGUF model is read with the package gguf: pip install gguf") from None
    model = open_gguf(path)
    architecture = model.first.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise InputError(f"{path}: the metadata has no general.architecture")
    place = _Temporary()
    with tempfile.TemporaryDirectory(prefix="athena-gguf-") as scratch:
        metadata = Path(scratch) / _METADATA
        write_bytes(metadata, model.first.metadata(without_vocabulary=True))
        raw = _config(path, metadata, model, architecture)
        write_bytes(metadata, model.first.metadata())
        _write_tokenizer(path, metadata, place.folder)
    write_json(place.folder / "config.json", {n: v for n, v in raw.items() if n not in _NOT_IN_A_CONFIG})
    _write_generation(model.first, raw, place.folder)
    found = GgufFolder(model, place.folder, architecture, raw)
    _FOLDERS[place.folder] = found
    _KEPT.append(place)
    return found


class _Temporary:
    """A folder that is deleted when the process ends."""

    def __init__(self) -> None:
        self._held = tempfile.TemporaryDirectory(prefix="athena-gguf-")
        self.folder = Path(self._held.name)


_KEPT: list[_Temporary] = []


def _config(path: Path, metadata: Path, model: GgufModel, architecture: str) -> dict[str, Any]:
    """The config that transformers makes of the metadata; what it sees in the tensors is taken from all parts."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS, get_gguf_config, read_gguf_metadata
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    newer = architecture in GGUF_CONFIG_ARCHS
    if newer and architecture not in _NEWER:  # with other rules for the weights
        raise InputError(f"{path}: GGUF models of architecture {architecture} are not supported")
    with _quiet(), foreign(path, "transformers cannot read this GGUF model"):
        raw: dict[str, Any]
        if newer:
            values = {**read_gguf_metadata(str(metadata))[0], _TOKENS: model.first.lengths.get(_TOKENS)}
            raw = get_gguf_config(values, tuple(model.tensors))
        else:
            raw = load_gguf_checkpoint(metadata, return_tensors=False)["config"]
    _check_sizes(path, raw, model.first, architecture)
    if "vocab_size" not in raw and _TOKENS in model.first.lengths:
        raw["vocab_size"] = model.first.lengths[_TOKENS]
    raw["tie_word_embeddings"] = "output.weight" not in model.tensors or architecture in _UNTIED
    if architecture == "stablelm":
        biases = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
        raw["use_qkv_bias"] = any(name.endswith(biases) for name in model.tensors)
        raw["use_parallel_residual"] = not any("ffn_norm" in name for name in model.tensors)
    return raw


def _check_sizes(path: Path, raw: dict[str, Any], first: GgufHeader, architecture: str) -> None:
    """What a file must say: where it says nothing, transformers would take its class's default, another model's.

    Heads of keys and values may be left out: as many as heads of queries.
    """
    from transformers.integrations import GGUF_CONFIG_MAPPING

    for name in ("block_count", "embedding_length", "attention.head_count", "context_length"):
        value = first.values.get(f"{architecture}.{name}")
        if type(value) is not int or value < 1:
            raise InputError(f"{path}: {architecture}.{name} must be a whole number of 1 or more, not {value!r}")
    known: Any = GGUF_CONFIG_MAPPING
    names = known.get(architecture, {})
    field = names.get("attention.head_count_kv")
    if field is not None and field not in raw:
        raw[field] = first.values[f"{architecture}.attention.head_count"]
    eps = [name for name in names if name.endswith("_epsilon")]
    if eps and type(first.values.get(f"{architecture}.{eps[0]}")) is not float:
        raise InputError(f"{path}: {architecture}.{eps[0]} is missing")


def _write_tokenizer(path: Path, metadata: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    with _quiet(), boundary(path, "transformers cannot build the tokenizer of this GGUF model"):
        tokenizer = AutoTokenizer.from_pretrained(
            metadata.parent, gguf_file=metadata.name, trust_remote_code=False, local_files_only=True
        )
        tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks about keys that it does not find."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _write_generation(first: GgufHeader, raw: dict[str, Any], folder: Path) -> None:
    """Which tokens end a text: the model's end of text, and the end of a turn, which llama.cpp stops at, too."""
    ends = [first.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    known = [end for end in dict.fromkeys(ends) if type(end) is int and end < first.lengths.get(_TOKENS, 0)]
    wanted = {name: raw[name] for name in ("bos_token_id", "pad_token_id") if type(raw.get(name)) is int}
    if known:
        wanted["eos_token_id"] = known if len(known) > 1 else known[0]
    write_json(folder / "generation_config.json", wanted)
