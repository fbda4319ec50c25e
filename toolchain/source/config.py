"""config.json as transformers' own class of the family reads it: defaults, nulls, older spellings, derived values.

A field that is absent means what the family's class says, and classes differ, so no default stands anywhere else: the
resolved dictionary has every field, and goes into checkpoints and model folders, whose readers need no transformers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from export.contract.errors import InputError
from export.files.special_floats import as_json, from_json
from export.graph.archs import supported_model_types
from export.graph.archs._tasks import is_scoring
from toolchain.source.wrappers import left_out_of, refuse_unknown_wrapper, text_fields, without_other_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

# What the class does not get: code, backends and data types are chosen here, labels and outputs do not matter.
_NOT_FOR_THE_CLASS = frozenset(
    [
        "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "id2label", "label2id",
        "num_labels", "output_attentions", "output_hidden_states", "output_router_logits", "problem_type",
        "quantization_config", "return_dict", "torch_dtype", "transformers_version", "transformers_weights",
        "use_return_dict",
    ]
)  # fmt: skip
_ROUTERS = "output_router_logits"  # the class looks at its type; what it says does not matter either
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
_SIZED_BY_LAYER = frozenset(["gemma4_text"])  # families whose spec reads `per_layer_config`
_MOST_LAYERS = 10_000  # as export/artefacts/checkpoint.py: classes make lists of this length
_LONGEST_REASON = 300  # characters
T = TypeVar("T")


def resolved_config(raw: dict[str, Any], where: Path) -> dict[str, Any]:
    """Every field of a config.json as transformers has it, over the keys that it had; unsupported families unchanged.

    Of a model with a text part (wrappers.py) it is the text part's. where: the file, for messages. Resolving twice
    changes nothing. Raises InputError, in one line, where the class refuses a value or layers differ from each other in
    their settings (`per_layer_config`).
    """
    if left_out_of(raw) is not None:
        raw = _text_part(raw, where)
    if raw.get("model_type") not in supported_model_types():
        refuse_unknown_wrapper(raw, where)
        return raw
    _check_layers(raw, where)
    made = as_transformers(lambda: _fields(transformers_config(raw)), where)
    return {**raw, **made, "model_type": raw["model_type"]}


def _check_layers(raw: dict[str, Any], where: Path) -> None:
    if raw.get("per_layer_config") and raw.get("model_type") not in _SIZED_BY_LAYER:
        raise InputError(f"{where}: per_layer_config is not supported")
    for name in _LAYER_COUNTS:
        count = raw.get(name)
        if isinstance(count, int | float) and count > _MOST_LAYERS:
            raise InputError(f"{where}: {name} must be at most {_MOST_LAYERS}, not {count!r}")


def _text_part(raw: dict[str, Any], where: Path) -> dict[str, Any]:
    """Every field of the text part, as the wrapper's class reads it."""
    if isinstance(raw.get("text_config"), dict):
        _check_layers(raw["text_config"], where)

    def made() -> dict[str, Any]:
        whole = transformers_config(without_other_parts(raw))
        text = whole.get_text_config(decoder=True)
        fields = {**_fields(text), "model_type": text.model_type}
        if "layer_types" not in {field.name for field in dataclasses.fields(text)}:  # kept, but read by no model of it
            fields.pop("layer_types", None)
        return text_fields(raw, whole, fields)

    return as_transformers(made, where)


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The config without what the class keeps for itself."""
    known = set(config.default_config_fields())
    found = {
        name: as_json(value)
        for name, value in config.to_dict().items()
        if name not in _NOT_FOR_THE_CLASS and (name in known or not name.startswith("_"))
    }
    if config.model_type in _SIZED_BY_LAYER:  # absent would mean sizes that the class chooses
        found.setdefault("per_layer_config", {})
    return found


def transformers_config(config: dict[str, Any]) -> PreTrainedConfig:
    """The configuration object that AutoConfig makes of a config.json of a supported family, never with remote code.

    Raises whatever transformers raises.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config["model_type"]
    if kind == "mistral" and "layer_types" in config:
        kind = "ministral"  # AutoConfig's rule
    given = {
        name: copy.deepcopy(from_json(value))
        for name, value in config.items()
        if (name not in _NOT_FOR_THE_CLASS or name == _ROUTERS)
        and not name.startswith(("_attn", "_experts"))
        and name != "model_type"
    }
    if is_scoring(config):
        given["num_labels"] = 1
    with _quiet():
        made: PreTrainedConfig = CONFIG_MAPPING[kind](**given)
        if hasattr(made, _ROUTERS):
            setattr(made, _ROUTERS, False)
        if getattr(made, "rope_parameters", None):
            made.standardize_rope_params()  # once more, as the rotary embedding does: now it sees every key
    return made


def as_transformers(call: Callable[[], T], where: Path) -> T:
    """What the call into transformers gives; whatever it raises over a bad config.json becomes one InputError line."""
    try:
        return call()
    except InputError:
        raise
    except Exception as error:  # strict validation, assertions and plain slips of many kinds
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise InputError(f"{where}: transformers refuses it ({type(error).__name__}: {reason})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks about keys it does not know."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
