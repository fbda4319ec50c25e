"""adapter_config.json of the package `adapters` (1.3; AdapterHub): which bottleneck it is, or why it is refused.

Forms of methods/modeling.py there. With d the output of a block's last product, r the residual, s = d + r:

    original_ln_before  original_ln_after  is_parallel        place (export/adapters/sites.py)
    no                  yes                no                 output     norm(s + f(d))         double_seq_bn, houlsby
    yes                 yes                no                 normed     norm(s + f(norm(s)))   seq_bn, pfeiffer
    any                 yes                yes                residual   norm(s + f(r))         par_bn, parallel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.adapters.sites import NORMED, OUTPUT, RESIDUAL
from export.adapters.store import NO_ACTIVATION
from export.contract.errors import InputError
from export.files.access import read_json

CONFIG = "adapter_config.json"
LEARNED, CHANNEL = "learned", "channel"
_LEAST_REDUCTION = 0.001
_RENAMED = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # in files without a version
_ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu", "silu": "silu", "tanh": "tanh", "sigmoid": "sigmoid",
    "linear": NO_ACTIVATION,
}  # fmt: skip
_SEQUENTIAL = {"original_ln_before": True, "original_ln_after": True, "mh_adapter": False, "output_adapter": True,
               "non_linearity": "relu", "reduction_factor": 16}  # fmt: skip
_DOUBLE = {"original_ln_before": False, "original_ln_after": True, "mh_adapter": True, "output_adapter": True,
           "non_linearity": "swish", "reduction_factor": 16}  # fmt: skip
_PARALLEL = {"is_parallel": True, "mh_adapter": False, "output_adapter": True, "non_linearity": "relu",
             "reduction_factor": 2, "scaling": 4.0}  # fmt: skip
_NAMED: dict[str, dict[str, Any]] = {
    "seq_bn": _SEQUENTIAL, "pfeiffer": _SEQUENTIAL, "double_seq_bn": _DOUBLE, "houlsby": _DOUBLE,
    "par_bn": _PARALLEL, "parallel": _PARALLEL, "scaled_parallel": _PARALLEL,
}  # fmt: skip
_READ = {"architecture", "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before",
         "original_ln_after", "is_parallel", "scaling", "residual_before_ln", "leave_out"}  # fmt: skip
# Of no consequence once the weights are trained, or without one of those that are refused.
_NEUTRAL = {"init_weights", "init_weights_seed", "dropout", "stochastic_depth", "adapter_residual_before_ln",
            "inv_adapter_reduction_factor", "cross_adapter", "phm_dim", "factorized_phm_W", "shared_W_phm",
            "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm",
            "hypercomplex_nonlinearity", "phm_rank", "phm_bias"}  # fmt: skip
_REFUSED = {
    "ln_before": "a norm of its own before the bottleneck",
    "ln_after": "a norm of its own behind the bottleneck",
    "use_gating": "a gate, which looks at all tokens of a text",
    "inv_adapter": "an invertible adapter behind the embeddings",
    "invertible_adapter": "an invertible adapter behind the embeddings",
    "phm_layer": "products of hypercomplex numbers (Compacter)",
}


@dataclass(frozen=True)
class BottleneckConfig:
    """What of the file matters."""

    where: str
    name: str  # of the adapter, as its weights have it; "" where the file does not say
    place: str
    activation: str
    attention: bool  # behind the attention
    feed_forward: bool  # behind the MLP
    scaling: float | str  # a number, or LEARNED or CHANNEL: among the weights
    left_out: frozenset[int]
    reduction: Mapping[str, float] | float
    source: Mapping[str, Any] = field(default_factory=dict)  # what is shown of it

    def rank(self, layer: int, width: int) -> int:
        """Of a layer's bottlenecks; 0 where the file does not say. width: of the layer."""
        factor = self.reduction
        if isinstance(factor, Mapping):
            factor = factor.get(str(layer), factor.get("default", 0.0))
        return max(int(width // factor), 1) if factor > 0 else 0


def is_bottleneck(given: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one of the package `adapters`, and not of PEFT."""
    return "peft_type" not in given and "config" in given


def read_bottleneck_config(folder: Path) -> BottleneckConfig:
    """The folder's adapter_config.json. Raises InputError on what is no bottleneck, or one that cannot be honoured."""
    path = folder / CONFIG
    given = read_json(path, folder)
    where = str(path)
    config = given.get("config")
    if isinstance(config, str):
        if config not in _NAMED:
            raise InputError(f"{where}: config {config[:40]!r}; known are {', '.join(_NAMED)}")
        config = _NAMED[config]
    if not isinstance(config, dict):
        raise InputError(f"{where}: config must be an object or a name")
    if config.get("architecture") is not None:
        kind = str(config["architecture"])[:40]
        raise InputError(f"{where}: architecture is {kind!r}; bottleneck adapters are read, and LoRA folders of PEFT")
    for name, told in _REFUSED.items():
        if config.get(name):
            raise InputError(f"{where}: {name}: {told} is not supported")
    unknown = sorted(n for n, value in config.items() if n not in _READ | _NEUTRAL | _REFUSED.keys() and value)
    if unknown:
        raise InputError(f"{where}: {unknown[0][:100]} is not known here, and may change what the adapter means")
    shown = {name: str(given[name])[:200] for name in ("model_name", "name") if given.get(name) is not None}
    if "model_name" in shown:
        shown["base_model_name_or_path"] = shown.pop("model_name")
    return BottleneckConfig(
        where=where,
        name=str(given.get("name") or ""),
        place=_place(where, config),
        activation=_activation(where, config, "version" in given),
        attention=_flag(where, config, "mh_adapter"),
        feed_forward=_flag(where, config, "output_adapter"),
        scaling=_scaling(where, config.get("scaling", 1.0)),
        left_out=_layers(where, config.get("leave_out") or []),
        reduction=_reduction(where, config.get("reduction_factor")),
        source=shown,
    )


def _place(where: str, config: Mapping[str, Any]) -> str:
    before, after = (_flag(where, config, f"original_ln_{end}", end == "after") for end in ("before", "after"))
    parallel, kept = _flag(where, config, "is_parallel"), config.get("residual_before_ln", True)
    if not after:
        raise InputError(f"{where}: original_ln_after must be true: a bottleneck behind the last norm is not supported")
    if parallel:
        return RESIDUAL
    if before and kept is not True:
        raise InputError(f"{where}: residual_before_ln must be true where original_ln_before is")
    if not isinstance(kept, bool):
        raise InputError(f"{where}: residual_before_ln must be true or false")
    return NORMED if before else OUTPUT


def _activation(where: str, config: Mapping[str, Any], versioned: bool) -> str:
    given = config.get("non_linearity")
    name = given.lower() if isinstance(given, str) else ""
    name = name if versioned else _RENAMED.get(name, name)
    if name not in _ACTIVATIONS:
        raise InputError(f"{where}: non_linearity {str(given)[:40]!r}; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _flag(where: str, config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false")
    return value


def _scaling(where: str, value: Any) -> float | str:
    if value in (LEARNED, CHANNEL):
        return str(value)
    return _number(where, "scaling", value)


def _number(where: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:  # NaN, too
        raise InputError(f"{where}: {name} must be a number, not {str(value)[:40]}")
    return float(value)


def _layers(where: str, value: Any) -> frozenset[int]:
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise InputError(f"{where}: leave_out must be whole numbers")
    return frozenset(value)


def _reduction(where: str, value: Any) -> Mapping[str, float] | float:
    given = value if isinstance(value, dict) else {"default": value}
    found = {str(key): _number(where, "reduction_factor", one) for key, one in given.items()}
    if any(one < _LEAST_REDUCTION for one in found.values()):
        raise InputError(f"{where}: reduction_factor must be {_LEAST_REDUCTION} or more")
    return found
