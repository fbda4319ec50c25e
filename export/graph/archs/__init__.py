"""One file per Hugging Face model_type. Each turns a config.json dictionary into a ModelSpec with `spec(config)`.

The dictionary has every field of the family's class in transformers; no default stands here. Families of encoders
say so with `ENCODER = True`, and have a `score_head(config)` where they rank pairs of texts. One whose model_type is no
name for a file says it with `MODEL_TYPE`.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._tasks import as_encoder, is_embedding, is_scoring, with_scores
from export.graph.low_rank import with_low_rank
from export.graph.spec import ModelSpec


def supported_model_types() -> list[str]:
    """Names of the model families there is a file for."""
    return sorted(_families())


def is_supported(model_type: object) -> bool:
    """Whether there is a file for this family."""
    return _family(model_type) is not None


def is_encoder_family(model_type: object) -> bool:
    """Whether the models of this type are encoders; False for types there is no file for."""
    return bool(getattr(_family(model_type), "ENCODER", False))


def _family(model_type: object) -> ModuleType | None:
    """The file for a model_type, None without one. All files take longer to import than a small model to answer."""
    if not isinstance(model_type, str):
        return None
    if model_type in _files():
        file = _file(model_type)
        if _type_of(file) == model_type:
            return file
    return _families().get(model_type)


@functools.cache
def _families() -> dict[str, ModuleType]:
    """The files by the model_type they are for."""
    return {_type_of(file): file for file in map(_file, _files())}


@functools.cache
def _files() -> frozenset[str]:
    """Names of the files that are families."""
    names = {name for place in __path__ for name in os.listdir(place)}
    return frozenset(name[:-3] for name in names if name.endswith(".py") and not name.startswith("_"))


def _file(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _type_of(file: ModuleType) -> str:
    return str(getattr(file, "MODEL_TYPE", file.__name__.rpartition(".")[2]))


def model_spec(config: dict[str, Any]) -> ModelSpec:
    """The ModelSpec of a Hugging Face config dictionary that has every field (toolchain/source/config.py).

    Raises InputError when the family is unknown or a field is missing, has the wrong type or an unsupported value.
    """
    model_type = config.get("model_type")
    module = _family(model_type)
    if module is None:
        raise InputError(
            f"config.json: model_type {model_type!r} is not supported; supported are "
            f"{', '.join(supported_model_types())}. To add one, write export/graph/archs/{model_type}.py"
        )
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
