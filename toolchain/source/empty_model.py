"""transformers' model of a configuration without memory for its weights: their names and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from export.contract.errors import InputError
from export.graph.archs import model_spec
from toolchain.source.config import transformers_config


def empty_model(config: dict[str, Any]) -> Any:
    """The model on the device "meta", in float32, experts packed as transformers has them; config: resolved.

    Raises InputError when the config is refused by this package or by transformers.
    """
    kind = AutoModelForCausalLM if model_spec(config).causal else AutoModel
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config(transformers_config(config), dtype=torch.float32)
    except Exception as error:  # the classes check their fields in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"config.json: transformers refuses it ({reason})") from None
    return model
