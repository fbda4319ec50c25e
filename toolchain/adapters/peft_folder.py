"""A LoRA folder of PEFT as terms of a model folder: its JSON and its safetensors file, never a pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.adapters.factors import Factors, factors
from export.adapters.sites import Site
from export.adapters.store import MAX_BYTES, MOST_RANK, Adapter
from export.contract.errors import InputError
from export.files.tensor_file import read_tensors
from toolchain.adapters.layers import endings, site_of
from toolchain.adapters.peft_config import LoraConfig, read_lora_config

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight")
_PREFIX = "base_model.model."
_HALF = "the name of another method of PEFT, or of a trained part that an adapter cannot have"


def read_lora(folder: Path, name: str, sites: Sequence[Site], bits: int) -> Adapter:
    """The adapter that a folder of PEFT holds. sites: of the model folder. bits: 8, 16 or 32 of a factor's numbers.

    Raises InputError on a folder that is incomplete, hostile, for another model, or cannot be honoured.
    """
    config, pairs, patterns = _read(folder)
    path, places = folder / WEIGHTS, endings(sites)
    terms: dict[str, Factors] = {}
    for module, (a, b) in pairs.items():
        site = _site(path, module, places)
        if site.module in terms:
            raise InputError(f"{path}: {module[:200]} stands for {site.module}, which has factors already")
        terms[site.module] = _term(f"{path}: {module[:200]}", a, b, module, site, config, patterns, bits)
    return Adapter(name, bits, terms, dict(config.source))


def check_folder(folder: Path) -> None:
    """What can be said of a folder without the model. Raises InputError as read_lora() does."""
    _read(folder)


def _read(folder: Path) -> tuple[LoraConfig, Pairs, Mapping[str, frozenset[str]]]:
    """The configuration, the factors, and what the configuration's expressions match."""
    config, path = read_lora_config(folder), folder / WEIGHTS
    if not path.exists() and any(folder.glob("adapter_model.*")):
        raise InputError(f"{folder}: adapters are read from {WEIGHTS} alone; save it with safe_serialization=True")
    pairs = _pairs(path, read_tensors(path, MAX_BYTES, folder))
    patterns = config.matched(list(pairs))
    for module in pairs:
        if not config.targets(module, patterns):
            raise InputError(f"{path}: {module[:200]} has factors, but adapter_config.json does not select it")
    return config, pairs, patterns


def _pairs(path: Path, tensors: Mapping[str, np.ndarray]) -> Pairs:
    """A [rank, columns] and B [rows, rank] of each module, as PEFT names it."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{path}: {key[:200]} is {_HALF}")
        parts = found.setdefault(match["module"].removeprefix(_PREFIX), {})
        if match["part"] in parts:
            raise InputError(f"{path}: {key[:200]} is there twice")
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InputError(f"{path}: {key[:200]} is {array.dtype.name} {list(array.shape)}, not a matrix of floats")
        parts[match["part"]] = array
    if not found:
        raise InputError(f"{path}: holds no factors")
    for module, parts in found.items():
        if len(parts) < 2:
            raise InputError(f"{path}: {module[:200]} has only one of lora_A and lora_B")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _site(path: Path, module: str, places: Mapping[str, Site | None]) -> Site:
    found = site_of(module, places)
    if found is None:
        raise InputError(
            f"{path}: {module[:200]} is no layer of this model that can have a term (products with one stored matrix "
            "can; embeddings, experts, convolutions and products of razored integers cannot)"
        )
    return found


def _term(
    where: str, a: np.ndarray, b: np.ndarray, module: str, site: Site, config: LoraConfig,
    patterns: Mapping[str, frozenset[str]], bits: int,
) -> Factors:  # fmt: skip
    rank = len(a)
    if not 1 <= rank <= MOST_RANK:
        raise InputError(f"{where}: rank {rank} is not 1 to {MOST_RANK}")
    expected = config.rank(module, patterns)
    if rank != expected:
        raise InputError(f"{where}: has rank {rank}, adapter_config.json says {expected}")
    if a.shape[1] != site.columns or b.shape != (site.rows, rank):
        layer = [site.rows, site.columns]
        raise InputError(f"{where}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit the layer {layer}")
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = b.T.astype(np.float64) * config.scaling(module, rank, patterns)
        return factors(a.astype(np.float32), np.ascontiguousarray(scaled).astype(np.float32), bits, where)
