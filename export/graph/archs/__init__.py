"""One file per Hugging Face model_type. Each turns a config.json dictionary into a ModelSpec with `spec(config)`.

The dictionary has every field of the family's class in transformers; no default stands here. Families of encoders
say so with `ENCODER = True`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from export.contract.errors import InputError
from export.graph.spec import ModelSpec


def supported_model_types() -> list[str]:
    """Names of the model families there is a file for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def is_encoder_family(model_type: object) -> bool:
    """Whether the models of this type are encoders; False for types there is no file for."""
    return model_type in supported_model_types() and bool(
        getattr(importlib.import_module(f"export.graph.archs.{model_type}"), "ENCODER", False)
    )


def model_spec(config: dict[str, Any]) -> ModelSpec:
    """The ModelSpec of a Hugging Face config dictionary that has every field (toolchain/source/config.py).

    Raises InputError when the family is unknown or a field is missing, has the wrong type or an unsupported value.
    """
    model_type = config.get("model_type")
    if model_type not in supported_model_types():
        raise InputError(
            f"config.json: model_type {model_type!r} is not supported; supported are "
            f"{', '.join(supported_model_types())}. To add one, write export/graph/archs/{model_type}.py"
        )
    module = importlib.import_module(f"export.graph.archs.{model_type}")
    try:
        return module.spec(config)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"config.json: field {error.args[0]!r} is missing") from None
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"config.json: a field has an impossible value ({type(error).__name__}: {error})") from None
