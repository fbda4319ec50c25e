"""Text models inside multimodal ones: the config of the text part, and the names of its tensors without the wrapper's.

Only wrappers that hand a text without images or sounds to their text model as it is: the same embeddings, positions and
masks. Vision and audio parts are never built; their settings and tensors are not read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from export.contract.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# model_type of a config.json with a `text_config`: what is left out of such a model
WRAPPERS = {
    "aya_vision": "vision",
    "cohere2_vision": "vision",
    "gemma3": "vision",
    "gemma3n": "vision and audio",
    "gemma4": "vision and audio",
    "got_ocr2": "vision",
    "idefics3": "vision",
    "internvl": "vision",
    "llava": "vision",
    "llava_next": "vision",
    "llava_onevision": "vision",
    "mistral3": "vision",
    "qwen2_audio": "audio",
    "qwen3_5": "vision",
    "qwen3_5_moe": "vision",
    "smolvlm": "vision",
    "vipllava": "vision",
    "voxtral": "audio",
}
_PREFIX = re.compile(r"^(model\.(language_model|text_model)|language_model\.model|language_model(?=\.(?!lm_head\.)))\.")
_HEAD = re.compile(r"^(language_model\.)?(?=lm_head\.)")
_OTHER_PARTS = ("vision_config", "audio_config")
# What text models do to their logits and the wrappers' own heads do not, as doing nothing.
_BEHIND_THE_HEAD = {"logit_scale": 1.0, "logits_scaling": 1.0, "final_logit_softcapping": None}
_CAPPING = frozenset(["gemma3n", "gemma4"])  # wrappers whose heads do all that their text models' do
_ENDS = ("bos_token_id", "eos_token_id")  # of the whole model where it states them, as in transformers' generation


def left_out_of(config: dict[str, Any]) -> str | None:
    """What is left out of the model of a config.json ("vision", "audio"); None where it is no wrapper that is known."""
    kind = config.get("model_type")
    return WRAPPERS.get(kind) if isinstance(kind, str) else None


def refuse_unknown_wrapper(config: dict[str, Any], where: object) -> None:
    """Raises InputError for a model_type that has no file here and is no known wrapper, but holds a text model."""
    if isinstance(config.get("text_config"), dict):
        raise InputError(
            f"{where}: model_type {config.get('model_type')!r} is not supported, and its text_config cannot be taken "
            f"alone; of {', '.join(WRAPPERS)} it can"
        )


def check_quantization(config: dict[str, Any], fields: tuple[str, ...], where: object) -> None:
    """Raises InputError where the text part states a quantization that the whole model does not."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return
    for field in fields:
        if inner.get(field) is not None and inner[field] != config.get(field):
            raise InputError(f"{where}: text_config has another {field} than the model, which cannot be read")


def without_other_parts(config: dict[str, Any]) -> dict[str, Any]:
    """What the wrapper's class gets."""
    return {name: value for name, value in config.items() if name not in _OTHER_PARTS}


def text_fields(raw: dict[str, Any], whole: PreTrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """The config of the text part, complete. raw, whole: the wrapper's, stated and read; fields: the part's own."""
    dropped = {} if whole.model_type in _CAPPING else _BEHIND_THE_HEAD
    behind = {name: value for name, value in dropped.items() if name in fields}
    ends = {name: raw[name] for name in _ENDS if raw.get(name) is not None}
    return {**fields, **behind, **ends, "tie_word_embeddings": getattr(whole, "tie_word_embeddings", False)}


def text_name(stored: str) -> str | None:
    """The name that a tensor of a wrapper has in its text model; None for tensors of other parts."""
    if _HEAD.match(stored):
        return _HEAD.sub("", stored)
    return _PREFIX.sub("model.", stored) if _PREFIX.match(stored) else None
