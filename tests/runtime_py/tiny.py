"""A model folder of a few thousand random weights with the bundled tokenizer, whose numbers a test sets itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from export.artefacts.records import TensorRecord
from export.model_folder import write_model_folder
from tests.conftest import DEMO
from toolchain.pipeline.published_shapes import SHAPES
from toolchain.pipeline.random import RandomCheckpoint
from toolchain.settings.quantize import QuantizeSettings

_CONFIG = {
    "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1536, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
Edit = Callable[[np.ndarray], np.ndarray]


class _Edited(RandomCheckpoint):
    """Changes every tensor whose name ends in a key of `edits`; matrices by their scales, one for each row."""

    def __init__(self, folder: Path, settings: QuantizeSettings, edits: Mapping[str, Edit]) -> None:
        super().__init__("tiny", folder, settings)
        self.records = {name: _with_float32_scales(record) for name, record in self.records.items()}
        self._edits = edits

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        value = super().tensor(record_name, suffix)
        if suffix.endswith(".scale"):
            value = value.astype(np.float32)
        elif self.records[record_name].scheme != "float32":
            return value
        for end, edit in self._edits.items():
            if record_name.endswith(end):
                value = edit(value).astype(np.float32)
        return value


def _with_float32_scales(record: TensorRecord) -> TensorRecord:
    if "scale" not in record.parts:
        return record
    return replace(record, parts={**record.parts, "scale": replace(record.parts["scale"], dtype="float32")})


def write_tiny(folder: Path, edits: Mapping[str, Edit], settings: QuantizeSettings | None = None, **config) -> Path:
    """edits: by the end of a tensor's name, what becomes of its numbers (float32). config: over those of a tiny Qwen2.

    Scales are stored as float32, one a row.
    """
    settings = settings or QuantizeSettings(bits=8, method="rtn", scale_bits=16)
    source = folder.with_name(folder.name + "-source")
    source.mkdir(parents=True)
    with mock.patch.dict(SHAPES, {"tiny": {**_CONFIG, **config}}):
        checkpoint = _Edited(source, settings, edits)
    shutil.copyfile(DEMO / "tokenizer.json", source / "tokenizer.json")
    folder.mkdir(parents=True)
    write_model_folder(checkpoint, folder, lambda name, index, count: None)
    return folder


def times(factor: float) -> Edit:
    return lambda value: value * np.float32(factor)


def filled(number: float) -> Edit:
    return lambda value: np.full_like(value, number)
