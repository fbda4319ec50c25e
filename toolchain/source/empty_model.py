"""transformers' model of a configuration without memory for its weights: their names and shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from toolchain.source.config import transformers_config

if TYPE_CHECKING:
    from toolchain.source.checkpoint import SourceModel


def model_class(spec: ModelSpec) -> Any:
    """transformers' class of models for what the model is for."""
    if spec.causal:
        return AutoModelForCausalLM
    return AutoModelForSequenceClassification if spec.scores else AutoModel


def empty_model(config: dict[str, Any]) -> Any:
    """The model on the device "meta", in float32, experts packed as transformers has them; config: resolved.

    Raises InputError when the config is refused by this package or by transformers.
    """
    kind = model_class(model_spec(config))
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config(transformers_config(config), dtype=torch.float32)
    except Exception as error:  # the classes check their fields in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"config.json: transformers refuses it ({reason})") from None
    return model


def check_shapes(source: SourceModel, model: nn.Module) -> None:
    """Raises InputError for the first tensor of another shape than the model's parameter has; reads headers alone."""
    for name, parameter in model.named_parameters():
        if source.has(name):
            source.check_shape(name, tuple(parameter.shape))
