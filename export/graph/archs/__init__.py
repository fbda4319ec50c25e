"""One file per Hugging Face model_type. Each turns a config.json dictionary into a ModelSpec with `spec(config)`.

The dictionary has every field of the family's class in transformers; no default stands here. Families of encoders
say so with `ENCODER = True`, and have a `score_head(config)` where they rank pairs of texts. One whose model_type is no
name for a file says it with `MODEL_TYPE`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._tasks import as_encoder, is_embedding, is_scoring, with_scores
from export.graph.low_rank import with_low_rank
from export.graph.spec import ModelSpec


def supported_model_types() -> list[str]:
    """Names of the model families there is a file for."""
    return sorted(_families())


@functools.lru_cache(maxsize=1)
def _families() -> dict[str, ModuleType]:
    """The files by the model_type they are for."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    files = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {getattr(file, "MODEL_TYPE", name): file for name, file in files.items()}


def is_encoder_family(model_type: object) -> bool:
    """Whether the models of this type are encoders; False for types there is no file for."""
    return model_type in supported_model_types() and bool(getattr(_families()[str(model_type)], "ENCODER", False))


def model_spec(config: dict[str, Any]) -> ModelSpec:
    """The ModelSpec of a Hugging Face config dictionary that has every field (toolchain/source/config.py).

    Raises InputError when the family is unknown or a field is missing, has the wrong type or an unsupported value.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _families():
        raise InputError(
            f"config.json: model_type {model_type!r} is not supported; supported are "
            f"{', '.join(supported_model_types())}. To add one, write export/graph/archs/{model_type}.py"
        )
    module = _families()[model_type]
    try:
        spec: ModelSpec = with_low_rank(module.spec(config), config)
        if is_scoring(config):
            if not hasattr(module, "score_head"):
                raise InputError(f"config.json: a head that scores is not supported for {model_type}")
            return with_scores(spec, module.score_head(config))
        return as_encoder(spec, config) if spec.causal and is_embedding(config) else spec
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"config.json: field {error.args[0]!r} is missing") from None
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"config.json: a field has an impossible value ({type(error).__name__}: {error})") from None
