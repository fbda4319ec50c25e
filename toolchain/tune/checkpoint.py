"""Tunes a quantized checkpoint end to end and writes its shards anew, beside the untuned ones.

The tuned shards carry the prefix `tuned-`; the manifest names the prefix once all of them are there. Until then a run
starts from the untuned shards and the saved state of the training.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import PreTrainedModel

from export.artefacts.checkpoint import read_shard_records, shard_names, write_shard
from export.artefacts.records import TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from export.graph.spec import ModelSpec
from toolchain.calibrate.own_text import whole_model
from toolchain.numerics.products import FLOAT32, keep_rounded_only
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.system.device import CPU
from toolchain.system.memory import trim
from toolchain.system.progress import Reporter
from toolchain.tune.end_to_end import STATE_FILE, Tuner, TuneSettings
from toolchain.tune.trainable import trainable_layer
from toolchain.tune.trainable.base import TrainableMatrix

TUNED_PREFIX = "tuned-"


def tune_checkpoint(
    source: SourceModel, spec: ModelSpec, out: Path, settings: QuantizeSettings, steps: int, windows: np.ndarray,
    quiet: bool, precision: str = FLOAT32, device: torch.device = CPU,
) -> None:  # fmt: skip
    """Write all tuned shards of the checkpoint in `out`, after `steps` steps.

    windows are token ids int64 [count, length].
    """
    if all((out / name).exists() for name in shard_names(spec.blocks, TUNED_PREFIX)):
        return
    teacher = whole_model(source, precision, device)
    student = copy.deepcopy(teacher)
    for name in shard_names(spec.blocks):
        _install(student, out / name, spec)
    keep_rounded_only(teacher)
    trim()
    tune = TuneSettings(
        steps, settings.tune_rate, settings.width, settings.tune_batch, settings.seed, settings.own_text
    )
    tuner = Tuner(teacher, student, windows, tune, out)
    with Reporter("Tuning", tune.steps, quiet) as report:
        report.step("", tuner.step)
        for _, loss in tuner.run():
            report.step(f"KL {loss:.4f}")
    student.cpu()
    for name in shard_names(spec.blocks):
        write_shard(out / (TUNED_PREFIX + name), *_collect(student, out / name, spec))
    (out / STATE_FILE).unlink(missing_ok=True)


def _parts(path: Path) -> tuple[dict[str, np.ndarray], list[TensorRecord]]:
    return load_file(path), read_shard_records(path)


def _stored(tensors: dict[str, np.ndarray], record: TensorRecord) -> StoredMatrix:
    return StoredMatrix.restored(record, partial(_lookup, tensors, record.name))


def _lookup(tensors: dict[str, np.ndarray], name: str, suffix: str) -> np.ndarray | None:
    return tensors.get(name + suffix)


def _install(student: PreTrainedModel, path: Path, spec: ModelSpec) -> None:
    """Put a shard into the student: linear layers become trainable, embedding and head take their stored values."""
    tensors, records = _parts(path)
    trainable = set(spec.quantizable())
    for record in records:
        if record.name in trainable:
            layer = trainable_layer(student.get_submodule(record.name), _stored(tensors, record))
            student.set_submodule(record.name, layer)
        elif len(record.shape) == 1 or record.name in tensors:  # tuned with its block; a router
            own = dict(student.named_parameters()).get(record.name)
            if own is not None:
                own.data.copy_(torch.from_numpy(tensors[record.name]))
        elif len(record.shape) == 2:
            dense = tensors.get(f"{record.name}.weight")
            values = _stored(tensors, record).dequantized() if dense is None else dense.astype(np.float32)
            # the model's own name of the head may differ from the checkpoint's
            head = student.get_output_embeddings() if record.name == spec.head else None
            weight = (head or student.get_submodule(record.name)).weight
            assert isinstance(weight, torch.Tensor)
            first = spec.position_offset if record.name == spec.position_embedding else 0
            with torch.no_grad():
                weight[first:].copy_(torch.from_numpy(values))


def _collect(student: nn.Module, path: Path, spec: ModelSpec) -> tuple[dict[str, np.ndarray], list[TensorRecord]]:
    """The shard's tensors with the student's values."""
    tensors, records = _parts(path)
    parameters, trainable = dict(student.named_parameters()), set(spec.quantizable())
    fresh: dict[str, np.ndarray] = {}
    fresh_records = []
    for record in records:
        module = student.get_submodule(record.name) if record.name in trainable else None
        if isinstance(module, TrainableMatrix):
            parts, record = module.to_stored(dict(record.losses)).stored(record.name)
            fresh |= parts
        elif len(record.shape) == 1 and record.name in parameters:
            fresh[record.name] = parameters[record.name].detach().numpy().copy()
        else:
            fresh |= {k: v for k, v in tensors.items() if k == record.name or k.startswith(f"{record.name}.")}
        fresh_records.append(record)
    return fresh, fresh_records
