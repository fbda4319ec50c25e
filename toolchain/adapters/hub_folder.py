"""A bottleneck folder of the package `adapters` (AdapterHub) as terms of an encoder's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.adapters.factors import Factors, bottleneck
from export.adapters.sites import OUTPUT, RESIDUAL, Site
from export.adapters.store import MAX_BYTES, MOST_RANK, Adapter
from export.contract.errors import InputError
from export.files.tensor_file import read_tensors
from toolchain.adapters.hub_config import LEARNED, BottleneckConfig, read_bottleneck_config
from toolchain.adapters.layers import endings, site_of
from toolchain.adapters.pickled import read_pickled

WEIGHTS, PICKLE = "adapter.safetensors", "pytorch_adapter.bin"
_DOWN, _UP, _SCALING = "adapter_down.0", "adapter_up", "scaling"
_FORMER = "attention_text_task_adapters|attention_text_lang_adapters|layer_text_task_adapters|layer_text_lang_adapters"
_KEY = re.compile(
    rf"(?P<parent>.+)\.(?:adapters|{_FORMER})\.(?P<name>[^.]+)\."
    rf"(?P<part>(?:adapter_down\.0|adapter_up)\.(?:weight|bias)|{_SCALING})"
)
# Where the package puts its modules, and the products whose residual sums they stand at.
_PARENTS = (
    (re.compile(r"(.*)attention\.output"), ("attention.output.dense",)),
    (re.compile(r"(.*)attention\.attention_adapters"), ("attention.dense",)),
    (re.compile(r"(.*)attention_adapters"), ("attention.out_lin",)),
    (re.compile(r"(.*)output_adapters"), ("ffn_output", "ffn.lin2")),
    (re.compile(r"(.*)output"), ("output.dense",)),
)
# For ALBERT's attention the package takes the residual for the output, and the output for the residual
# (models/albert/modeling_albert.py): what it trained there reads the other one.
_SWAPPED = "attention.attention_adapters"
_OTHER = {OUTPUT: RESIDUAL, RESIDUAL: OUTPUT}
_LAYER = re.compile(r"(.*\.\d+)\..*")
Parts = dict[str, dict[str, np.ndarray]]


def read_bottleneck(folder: Path, name: str, sites: Sequence[Site], bits: int) -> Adapter:
    """The adapter that a folder holds. sites: where the model folder has room for one. bits: of a factor's numbers.

    Raises InputError on a folder that is incomplete, hostile, for another model, or cannot be honoured.
    """
    config = read_bottleneck_config(folder)
    path, parts = _parts(folder, config)
    here = {site.module: site for site in sites}
    if not here:
        raise InputError(
            f"{path}: is a bottleneck adapter; the model has no block that ends with a residual sum and a norm, as "
            "those of BERT and ALBERT do"
        )
    places, layers = endings(sites), _layers(sites)
    terms: dict[str, Factors] = {}
    for parent, found in parts.items():
        site = _site(path, parent, places)
        if site.module in terms:
            raise InputError(f"{path}: {parent[:200]} stands for {site.module}, which has a bottleneck already")
        layer, place = layers[_layer(site.module)], config.place
        if parent.endswith(_SWAPPED):
            place = _OTHER.get(place, place)
        if not _wanted(config, site.module, layer):
            raise InputError(f"{path}: {parent[:200]} has a bottleneck, but adapter_config.json has none there")
        terms[site.module] = _term(f"{path}: {parent[:200]}", found, site, config, (layer, place), bits)
    for module in here:
        if module not in terms and _wanted(config, module, layers[_layer(module)]):
            raise InputError(f"{path}: has no bottleneck at {module}, where adapter_config.json has one")
    return Adapter(name, bits, terms, dict(config.source), config.activation)


def check_bottleneck_folder(folder: Path) -> None:
    """What can be said of a folder without the model. Raises InputError as read_bottleneck() does."""
    _parts(folder, read_bottleneck_config(folder))


def _parts(folder: Path, config: BottleneckConfig) -> tuple[Path, Parts]:
    """The file, and its tensors by the module that they are in."""
    path = folder / WEIGHTS
    if path.exists() or not (folder / PICKLE).exists():
        tensors = read_tensors(path, MAX_BYTES, folder)
    else:
        path = folder / PICKLE
        tensors = read_pickled(path, folder)
    found: Parts = {}
    names = {config.name} if config.name else set()
    for key, array in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{path}: {key[:200]} is the name of another method, or of a part that is not supported")
        names.add(match["name"])
        if array.dtype.kind != "f":
            raise InputError(f"{path}: {key[:200]} is {array.dtype.name}, not floats")
        parts = found.setdefault(match["parent"], {})
        if match["part"] in parts:
            raise InputError(f"{path}: {key[:200]} is there twice")
        parts[match["part"]] = array
    if not found:
        raise InputError(f"{path}: holds no bottleneck")
    if len(names) > 1:
        raise InputError(f"{path}: holds adapters of different names ({', '.join(sorted(names))[:200]})")
    return path, found


def _site(path: Path, parent: str, places: Mapping[str, Site | None]) -> Site:
    for form, products in _PARENTS:
        match = form.fullmatch(parent)
        for product in products if match else ():
            assert match is not None
            found = site_of(match[1] + product, places)
            if found is not None:
                return found
    raise InputError(f"{path}: {parent[:200]} is no end of a block of this model")


def _layer(module: str) -> str:
    match = _LAYER.fullmatch(module)
    return match[1] if match else ""


def _layers(sites: Sequence[Site]) -> dict[str, int]:
    """Numbers of layers by the beginning of their names; those that share their weights are one, as for the package."""
    return {name: number for number, name in enumerate(dict.fromkeys(_layer(site.module) for site in sites))}


def _wanted(config: BottleneckConfig, module: str, layer: int) -> bool:
    attention = ".attention." in module
    return layer not in config.left_out and (config.attention if attention else config.feed_forward)


def _term(
    where: str, parts: Mapping[str, np.ndarray], site: Site, config: BottleneckConfig, at: tuple[int, str], bits: int
) -> Factors:
    """at: number of the layer, and the place."""
    rank = config.rank(at[0], site.rows)
    down = parts.get(f"{_DOWN}.weight")
    given = len(down) if down is not None and down.ndim == 2 else 0
    if not 1 <= given <= MOST_RANK:
        raise InputError(f"{where}: {_DOWN}.weight is no matrix of 1 to {MOST_RANK} rows")
    if rank and given != rank:
        raise InputError(f"{where}: a bottleneck of {given}; adapter_config.json says {rank}")
    width = site.rows
    shapes: dict[str, tuple[int, ...]] = {
        f"{_DOWN}.weight": (given, width), f"{_DOWN}.bias": (given,), f"{_UP}.weight": (width, given),
        f"{_UP}.bias": (width,),
    }  # fmt: skip
    if isinstance(config.scaling, str):
        shapes[_SCALING] = (1,) if config.scaling == LEARNED else (width,)
    for name, shape in shapes.items():
        found = parts.get(name)
        if found is None or found.shape != shape:
            told = "missing" if found is None else f"of shape {list(found.shape)}"
            raise InputError(f"{where}: {name} is {told}, expected {list(shape)}")
    if parts.keys() - shapes.keys():
        raise InputError(f"{where}: has a {_SCALING} that adapter_config.json does not have")
    given_scale = config.scaling if isinstance(config.scaling, float) else parts[_SCALING]
    scale = np.asarray(given_scale, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        up = parts[f"{_UP}.weight"].T.astype(np.float64) * scale
        bias = parts[f"{_UP}.bias"].astype(np.float64) * scale
        biases = (parts[f"{_DOWN}.bias"].astype(np.float32), bias.astype(np.float32))
        a = parts[f"{_DOWN}.weight"].astype(np.float32)
        return bottleneck(a, np.ascontiguousarray(up).astype(np.float32), biases, at[1], bits, where)
