"""What the model of a source folder is for, where its config.json alone does not say it, or says it by its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import is_encoder_family, supported_model_types
from export.graph.archs._tasks import EMBEDDING, SCORING, TASK
from export.graph.sentence_modules import MODULES, module_kinds

_CLASSIFIER = "ForSequenceClassification"
_LABELS = 2  # where config.json names none, as in transformers


def with_task(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """config.json of the folder, with what its model is for where that is not what its family is for.

    A decoder that sentence-transformers pools makes vectors; an encoder that was saved with a head of one label scores
    pairs. Raises InputError for other heads that classify, and where the folder's modules.json is broken.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in supported_model_types():
        return config
    kinds = module_kinds(folder)
    if "Pooling" in kinds:
        return config if is_encoder_family(kind) else {**config, TASK: EMBEDDING}
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    if not isinstance(name, str) or not name.endswith(_CLASSIFIER):
        return config
    if not is_encoder_family(kind):
        raise InputError(f"{folder / 'config.json'}: {name} is not supported: a decoder with a head that classifies")
    if (labels := _labels(config)) != 1:
        raise InputError(f"{folder / 'config.json'}: {name} with {labels} labels is not supported; rerankers have one")
    if set(kinds) - {"Transformer"}:
        raise InputError(f"{folder / MODULES}: modules {', '.join(kinds)} are not supported beside {name}")
    return {**config, TASK: SCORING}


def _labels(config: dict[str, Any]) -> int:
    named, count = config.get("id2label"), config.get("num_labels")
    if isinstance(named, dict):
        return len(named)
    return count if type(count) is int else _LABELS
