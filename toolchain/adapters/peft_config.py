"""adapter_config.json of PEFT (0.21): which layers a LoRA changes and how much, or why it is refused.

Every field is honoured, is of no consequence for a trained adapter, or is refused in one line. Names of layers are
matched as PEFT matches them (tuners_utils.check_target_module_exists, other.get_pattern_key).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import read_json
from toolchain.adapters.patterns import ends_with, full_matches, is_plain

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
# Of no consequence once the factors are trained: training, how they began, and who made them.
_NEUTRAL = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "velora_config", "monteclora_config", "qalora_group_size", "megatron_core",
        "runtime_config", "ephemeral_gpu_offload", "ensure_weight_tying", "r", "lora_alpha", "use_rslora",
        "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "bias", "init_lora_weights",
    }
)  # fmt: skip
_WHOLE = "PEFT's merge_and_unload() makes a model of it that can be exported"
_REFUSED = {
    "use_dora": f"DoRA scales the rows of the shared weights, which an adapter cannot; {_WHOLE}",
    "modules_to_save": f"whole layers ({{}}) would have to be replaced; {_WHOLE}, or train without modules_to_save",
    "target_parameters": f"parameters that are no layer ({{}}) are not supported; {_WHOLE}",
    "trainable_token_indices": f"trained embeddings of tokens are not supported; {_WHOLE}",
    "layer_replication": f"replicated layers are not supported; {_WHOLE}",
    "lora_bias": f"a bias of lora_B is not supported; {_WHOLE}",
    "alora_invocation_tokens": "an adapter that begins at invocation tokens (aLoRA) is not supported",
    "use_qalora": "QALoRA's pooled inputs are not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "arrow_config": "Arrow, which routes among adapters, is not supported",
    "kasa_config": "KaSA, which changes the shared weights, is not supported",
    "megatron_config": "Megatron's parallel layers are not supported",
}
# Values of init_lora_weights that take something out of the shared weights.
_RESIDUAL = re.compile(r"(pissa|olora|corda|loftq|lora_ga|mipa)\w*", re.IGNORECASE)


@dataclass(frozen=True)
class LoraConfig:
    """What of the file matters. Fields are PEFT's."""

    where: str
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | Sequence[str]
    exclude_modules: str | Sequence[str]
    layers_to_transform: frozenset[int] | None
    layers_pattern: Sequence[str]
    source: Mapping[str, Any] = field(default_factory=dict)  # what is shown of it

    def scaling(self, module: str, rank: int, patterns: Mapping[str, frozenset[str]]) -> float:
        """What multiplies the product of the factors. patterns: as matched() gives them."""
        alpha = float(self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module, patterns), self.lora_alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank(self, module: str, patterns: Mapping[str, frozenset[str]]) -> int:
        return int(self.rank_pattern.get(_pattern_key(self.rank_pattern, module, patterns), self.r))

    def matched(self, modules: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """Of each expression in the file the modules that it matches. Raises InputError."""
        keys = [key for key in (*self.rank_pattern, *self.alpha_pattern) if not is_plain(key)]
        asked = [rf"(.*\.)?({key})$" for key in keys]
        for value in (self.target_modules, self.exclude_modules):
            if isinstance(value, str) and value and value.lower() != ALL_LINEAR:
                asked.append(value)
        asked += [rf"(?:^|.*?\.){pattern}\.(\d+)\..*" for pattern in self.layers_pattern if not is_plain(pattern)]
        return full_matches(asked, modules, self.where)

    def targets(self, module: str, patterns: Mapping[str, frozenset[str]]) -> bool:
        """Whether PEFT would give this layer its factors."""
        excluded, wanted = self.exclude_modules, self.target_modules
        if isinstance(excluded, str):
            if excluded and module in patterns[excluded]:
                return False
        elif any(ends_with(module, key) for key in excluded):
            return False
        if isinstance(wanted, str):
            return wanted.lower() == ALL_LINEAR or module in patterns[wanted]
        return any(ends_with(module, key) for key in wanted) and self._transforms(module, patterns)

    def _transforms(self, module: str, patterns: Mapping[str, frozenset[str]]) -> bool:
        """Whether the layer's number is among layers_to_transform."""
        if self.layers_to_transform is None:
            return True
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
            return found is not None and int(found[1]) in self.layers_to_transform
        for pattern in self.layers_pattern:
            if is_plain(pattern):
                found = re.match(rf"(?:^|.*?\.){re.escape(pattern)}\.(\d+)\.", module)
                if found is not None:
                    return int(found[1]) in self.layers_to_transform
            elif module in patterns[rf"(?:^|.*?\.){pattern}\.(\d+)\..*"]:
                raise InputError(f"{self.where}: layers_pattern {pattern[:100]!r} must be a plain name here")
        return False


def _pattern_key(keys: Mapping[str, Any], module: str, patterns: Mapping[str, frozenset[str]]) -> str:
    """The first key that the module matches; the module where none does."""
    for key in keys:
        if ends_with(module, key) if is_plain(key) else module in patterns[rf"(.*\.)?({key})$"]:
            return key
    return module


def read_lora_config(folder: Path) -> LoraConfig:
    """The folder's adapter_config.json. Raises InputError on what is no LoRA, or one that cannot be honoured."""
    path = folder / CONFIG
    given = read_json(path, folder)
    where = str(path)
    kind = given.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {str(kind)[:40]!r}; LoRA folders of PEFT are read")
    for name, told in _REFUSED.items():
        if given.get(name):
            raise InputError(f"{where}: {name}: {told.format(_listed(given[name]))}")
    unknown = sorted(name for name, value in given.items() if name not in _NEUTRAL | _REFUSED.keys() and value)
    if unknown:
        raise InputError(f"{where}: {unknown[0][:100]} is not known here, and may change what the adapter means")
    if given.get("bias", "none") not in ("none", None):
        raise InputError(
            f"{where}: bias {str(given['bias'])[:40]!r}: biases of the shared model are not replaced; {_WHOLE}"
        )
    began = given.get("init_lora_weights", True)
    if isinstance(began, str) and _RESIDUAL.fullmatch(began):
        raise InputError(
            f"{where}: init_lora_weights {began[:40]!r} changed the model under the adapter; save it with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    layers = given.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    if layers is not None and not (isinstance(layers, list) and all(type(n) is int for n in layers)):
        raise InputError(f"{where}: layers_to_transform must be whole numbers")
    target = given.get("target_modules")
    if not target:
        raise InputError(f"{where}: target_modules names no layer")
    shown = {
        name: given[name] for name in ("base_model_name_or_path", "r", "lora_alpha") if given.get(name) is not None
    }
    shown = {name: value[:200] if isinstance(value, str) else value for name, value in shown.items()}
    return LoraConfig(
        where=where,
        r=_rank(where, "r", given.get("r", 8)),
        lora_alpha=_number(where, "lora_alpha", given.get("lora_alpha", 8)),
        use_rslora=_flag(where, "use_rslora", given.get("use_rslora")),
        rank_pattern={key: _rank(where, "rank_pattern", value) for key, value in _object(where, given, "rank_pattern")},
        alpha_pattern={
            key: _number(where, "alpha_pattern", value) for key, value in _object(where, given, "alpha_pattern")
        },
        target_modules=_names(where, "target_modules", target),
        exclude_modules=_names(where, "exclude_modules", given.get("exclude_modules") or []),
        layers_to_transform=frozenset(layers) if layers else None,
        layers_pattern=_listed_names(where, given.get("layers_pattern")),
        source=shown,
    )


def _listed(value: Any) -> str:
    return ", ".join(map(str, value))[:200] if isinstance(value, list | dict) else str(value)[:200]


def _flag(where: str, name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false")
    return bool(value)


def _rank(where: str, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise InputError(f"{where}: {name} must be a whole number of 1 or more, not {str(value)[:40]}")
    return value


def _number(where: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:  # NaN, too
        raise InputError(f"{where}: {name} must be a number, not {str(value)[:40]}")
    return float(value)


def _object(where: str, given: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    value = given.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be an object")
    return list(value.items())


def _names(where: str, name: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise InputError(f"{where}: {name} must be a text or a list of texts")


def _listed_names(where: str, value: Any) -> tuple[str, ...]:
    found = _names(where, "layers_pattern", value or [])
    return (found,) if isinstance(found, str) else found
