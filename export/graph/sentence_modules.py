"""What sentence-transformers files ask for behind the states of the tokens: pooling, dense layers, length one.

modules.json lists the modules and their folders; each has a config.json, a dense layer its weights as well.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.contract.errors import InputError
from export.files.access import MAX_JSON, copy_file, read_json, read_json_value
from export.files.tensor_file import read_tensors

MODULES, PROMPTS, TEXT_LIMIT = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_POOLING = "1_Pooling"  # its folder where modules.json names none
_DENSE_WEIGHTS, _MAX_DENSE = "model.safetensors", 1 << 30  # bytes
_WIDEST = 1 << 16  # columns of a dense layer
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {  # torch's modules as they are without arguments
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Dense:
    """A linear layer on the vector of the text, and its activation."""

    folder: Path
    columns: int
    rows: int
    bias: bool
    activation: str

    def weights(self) -> dict[str, np.ndarray]:
        """float32: "linear.weight" [rows, columns] and, with a bias, "linear.bias" [rows].

        Raises InputError where the file is missing or holds something else.
        """
        path = self.folder / _DENSE_WEIGHTS
        wanted: dict[str, tuple[int, ...]] = {"linear.weight": (self.rows, self.columns)}
        if self.bias:
            wanted["linear.bias"] = (self.rows,)
        tensors = read_tensors(path, _MAX_DENSE, self.folder)
        if tensors.keys() != wanted.keys():
            raise InputError(f"{path}: must hold {', '.join(wanted)} alone")
        found = {name: _floats(array, name, path) for name, array in tensors.items()}
        for name, shape in wanted.items():
            if found[name].shape != shape or not np.isfinite(found[name]).all():
                raise InputError(f"{path}: {name} must be {list(shape)} finite numbers")
        return found


def _floats(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind != "f":
        raise InputError(f"{path}: {name} is stored as {array.dtype.name}; floats are read")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
        return array.astype(np.float32)


@dataclass(frozen=True)
class Pooling:
    """From states to the vector of a text.

    mode: "mean" over the tokens that are not padding, "mean_sqrt_len_tokens" (their sum by the root of their number),
    "cls" (the first token), "lasttoken" or "max".
    """

    mode: str = "mean"
    normalize: bool = False  # to length one, at the end
    dense: tuple[Dense, ...] = ()  # behind the pooling


def read_pooling(folder: Path) -> Pooling:
    """What the folder's modules ask for; the mean, not normalized, where there is no modules.json.

    Raises InputError when they ask for something else.
    """
    modules = _modules(folder)
    kinds = module_kinds(folder)
    poolings, normalize = kinds[1:2] == ["Pooling"], kinds[-1:] == ["Normalize"]
    dense = kinds.count("Dense") if poolings else 0
    if modules and kinds != ["Transformer", *["Pooling"] * poolings, *["Dense"] * dense, *["Normalize"] * normalize]:
        raise InputError(f"{folder / MODULES}: modules {', '.join(kinds)} are not supported; Transformer, Pooling, "
                         "Dense and Normalize in this order are")  # fmt: skip
    mode = _mode(folder, modules[1][1]) if poolings else "mean"
    layers = tuple(_dense(folder, path) for kind, path in modules if kind == "Dense")
    for before, after in itertools.pairwise(layers):
        if before.rows != after.columns:
            raise InputError(f"{after.folder / 'config.json'}: in_features must be {before.rows}")
    return Pooling(mode, normalize, layers)


def module_kinds(folder: Path) -> list[str]:
    """Names of the modules' classes, in order; none without a modules.json. Raises InputError where that is broken."""
    return [kind for kind, _ in _modules(folder)]


def copy_sentence_files(source: Path, destination: Path) -> None:
    """Copy all of these files as they are. Raises InputError for one that is no regular file, or far too large."""
    for name in sentence_files(source):
        (destination / name).parent.mkdir(exist_ok=True)
        copy_file(source / name, destination / name, _MAX_DENSE if name.endswith(_DENSE_WEIGHTS) else MAX_JSON, source)


def sentence_files(folder: Path) -> list[str]:
    """Names of these files that are there, relative to the folder."""
    named = [f"{path}/config.json" for _, path in _modules(folder) if path]
    named += [f"{path}/{_DENSE_WEIGHTS}" for kind, path in _modules(folder) if kind == "Dense" and path]
    return [name for name in (MODULES, PROMPTS, TEXT_LIMIT, *named) if (folder / name).exists()]


def read_prompts(folder: Path) -> tuple[dict[str, str], str]:
    """Texts that go before a text, by name, and the name of the one that does unless another is asked for ("": none).

    Raises InputError where the file says it in another way.
    """
    if not (folder / PROMPTS).exists():
        return {}, ""
    settings, where = read_json(folder / PROMPTS, folder), folder / PROMPTS
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{where}: prompts must be texts by name")
    prompts = {name: text or "" for name, text in prompts.items()}
    if default and (not isinstance(default, str) or default not in prompts):
        raise InputError(f"{where}: default_prompt_name {default!r} is not among the prompts")
    if any(prompts.values()) and not _includes_prompt(folder):
        raise InputError(f"{where}: prompts beside include_prompt false (pooling without them) are not supported")
    return prompts, default


def _includes_prompt(folder: Path) -> bool:
    pooling = [path for kind, path in _modules(folder) if kind == "Pooling"]
    return all(read_json(folder / path / "config.json", folder).get("include_prompt", True) is True for path in pooling)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of every module, in order; none without a modules.json. Raises InputError."""
    where = folder / MODULES
    if not where.exists():
        return []
    try:
        modules = read_json_value(where, folder)
        found = [(str(module["type"]).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
        found = [(kind, path or (_POOLING if kind == "Pooling" else "")) for kind, path in found]
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{where}: not a list of sentence-transformers modules ({error})") from None
    for _, path in found:
        if path and not _PATH.fullmatch(path):
            raise InputError(f"{where}: path {path!r} is not the name of a folder")
    return found


def _mode(folder: Path, path: str) -> str:
    where = folder / path / "config.json"
    config = read_json(where, folder)
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    named = config.get("pooling_mode")  # as later releases write it
    if named is not None:
        several = named if isinstance(named, list) else [named]
        chosen = [next((k for k, v in _MODES.items() if v == mode), f"pooling_mode {mode!r}") for mode in several]
    if len(chosen) > 1 or any(name not in _MODES for name in chosen):
        raise InputError(f"{where}: {', '.join(chosen)} is not supported; {', '.join(_MODES)} are")
    return _MODES[chosen[0]] if chosen else "mean"


def _dense(folder: Path, path: str) -> Dense:
    where = folder / path / "config.json"
    config = read_json(where, folder)
    for name in ("in_features", "out_features"):
        size = config.get(name)
        if type(size) is not int or not 1 <= size <= _WIDEST:
            raise InputError(f"{where}: {name} must be a whole number from 1 to {_WIDEST}, not {size!r}")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise InputError(f"{where}: activation_function {activation!r} is not supported; {', '.join(_ACTIVATIONS)} are")
    neutral = {"use_residual": (False,), "module_input_name": ("sentence_embedding",),
               "module_output_name": ("sentence_embedding", None), "bias": (True, False)}  # fmt: skip
    for name, values in neutral.items():
        if name in config and config[name] not in values:
            raise InputError(f"{where}: {name} {config[name]!r} is not supported")
    columns, rows = config["in_features"], config["out_features"]
    return Dense(folder / path, columns, rows, config.get("bias", True), _ACTIVATIONS[activation])
