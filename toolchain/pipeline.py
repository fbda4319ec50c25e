"""Checkpoint in, quantized checkpoint out: streams over the blocks, writes each when done, resumes after a kill.

For block i, calibration states that have passed through the already quantized blocks 0..i-1 give the Hessians; the
block's layers are quantized; the shard is written; the states move on through the quantized block. A resumed run
replays finished blocks from their shards, so its result is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export import __version__
from export.archs import model_spec
from export.checkpoint import (
    FORMAT_VERSION,
    OUTSIDE_SHARD,
    QuantizedCheckpoint,
    TensorRecord,
    block_shard,
    read_shard_records,
    shard_names,
    write_shard,
)
from export.errors import InputError
from export.files import MANIFEST, read_json, write_json
from export.folder import copy_tokenizer
from export.spec import ModelSpec
from toolchain import calibration
from toolchain.blocks import BlockRunner, get_weight, set_weight
from toolchain.progress import Reporter
from toolchain.quantize import Method, method, needs_gradients, rtn
from toolchain.quantize.result import QuantizedMatrix
from toolchain.quantize.settings import QuantizeSettings
from toolchain.source import SourceModel, resolve


@dataclass(frozen=True)
class CalibrationChoice:
    """Where calibration text comes from."""

    source: str = calibration.BUILT_IN  # "built-in", a text file, or a hub dataset name
    part: str | None = None  # fraction of a text file, START:STOP


def quantize_model(
    model: str, out: Path, settings: QuantizeSettings, choice: CalibrationChoice, restart: bool = False,
    quiet: bool = False,
) -> QuantizedCheckpoint:  # fmt: skip
    """Quantize `model` (folder or hub name) into the quantized checkpoint `out`, continuing what is already there.

    Raises InputError for anything wrong with the model, the text or the settings, and when `out` holds a run with
    other settings (`restart` deletes it instead; a run with the same settings always continues).
    """
    quantizer = method(settings.method)
    folder = resolve(model)
    spec = model_spec(SourceModel(folder).config)
    source = SourceModel(folder, spec.optional_prefix)
    length = min(settings.sequence_length, spec.context_length)
    text = calibration.slice_text(calibration.calibration_text(choice.source), choice.part)
    tokenizer = calibration.load_tokenizer(folder)
    sample = partial(calibration.sample_sequences, text, tokenizer, vocab_size=spec.vocab_size, source=choice.source)
    data = sample(count=settings.sequences, length=length, seed=settings.seed)
    manifest = _manifest(model, source, spec, settings, data)
    _prepare(out, source, manifest, restart)
    if "totals" in read_json(out / MANIFEST):
        return QuantizedCheckpoint(out)
    runner = BlockRunner(source, spec)
    hidden: torch.Tensor | None = None
    names = spec.block.linears()
    fisher = needs_gradients(settings.method)
    gradients = None
    if (fisher or settings.guided or settings.is_budget) and not all(
        (out / block_shard(i)).exists() for i in range(spec.layers)
    ):
        from toolchain.gradients import measure

        gradients = measure(source, spec, data.tokens, quiet, per_weight=fisher)
    widths: dict[str, int] = {}
    if settings.is_budget and gradients is not None:
        from toolchain.allocation import plan_widths

        widths = plan_widths(runner, spec, data.tokens, gradients, settings, quantizer, out, quiet)
    with Reporter("Quantizing", spec.layers * len(names) + 1, quiet) as report:
        pending = [i for i in range(spec.layers) if not (out / block_shard(i)).exists()]
        if pending and pending[0] > 0:
            report.note(f"Resuming at block {pending[0]} of {spec.layers}")
        for layer in range(spec.layers):
            if not pending:
                report.step("already done", len(names))
                continue
            if hidden is None:
                hidden = runner.embed(data.tokens)
            block = runner.load_block(layer)
            path = out / block_shard(layer)
            if path.exists():
                _restore(block, path, spec, layer)
                report.step(f"block {layer + 1} replayed", len(names))
            else:
                prefix = spec.prefix(layer)
                guide = {n: gradients.outputs[prefix + n] for n in names} if gradients and settings.guided else None
                hessians, _ = runner.hessians(block, names, hidden, guide)
                by_weight = {n: gradients.weights[prefix + n] for n in names} if gradients and fisher else {}
                chosen = {n: replace(settings, bits=widths.get(prefix + n, settings.bits)) for n in names}
                quantize = partial(_quantize_matrix, quantizer, chosen, hessians, by_weight)
                tensors, records = _quantize_block(block, layer, spec, quantize, report)
                write_shard(path, tensors, records)
            if layer + 1 <= pending[-1]:
                hidden = runner.run(block, hidden)
        if not (out / OUTSIDE_SHARD).exists():
            write_shard(out / OUTSIDE_SHARD, *_outside(source, spec, settings))
        report.step("embedding and head")
    prefix = ""
    if settings.tune_steps:
        from toolchain.finetune import TUNED_PREFIX, tune_checkpoint

        windows = sample(count=None, length=min(settings.tune_length, spec.context_length), seed=settings.seed)
        tune_checkpoint(source, spec, out, settings, windows.tokens, quiet)
        prefix = TUNED_PREFIX
    return _finish(out, manifest, spec, prefix)


def _manifest(
    model: str, source: SourceModel, spec: ModelSpec, settings: QuantizeSettings, data: calibration.CalibrationData
) -> dict[str, Any]:
    identity = {
        "format_version": FORMAT_VERSION,
        "source": {"name": Path(model).name or model, "model_type": spec.model_type, "digest": source.fingerprint()},
        "calibration": {"source": Path(data.source).name, "shape": list(data.tokens.shape), "digest": data.digest},
        "settings": settings.to_json(),
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return {"tool_version": __version__, **identity, "fingerprint": fingerprint, "layers": spec.layers}


def _prepare(out: Path, source: SourceModel, manifest: dict[str, Any], restart: bool) -> None:
    """Create the output folder, or check that what it holds belongs to the same run."""
    if (
        restart
        and (out / MANIFEST).exists()
        and read_json(out / MANIFEST).get("fingerprint") != manifest["fingerprint"]
    ):
        shutil.rmtree(out)
    if (out / MANIFEST).exists():
        _refuse_changes(out, read_json(out / MANIFEST), manifest)
        return
    if out.exists() and (not out.is_dir() or any(p for p in out.iterdir() if not p.name.startswith("."))):
        raise InputError(f"{out}: exists and is not a quantized checkpoint; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.folder / "config.json", out / "config.json")
    copy_tokenizer(source.folder, out)
    write_json(out / MANIFEST, manifest)  # last: a folder with a manifest has everything else


def _refuse_changes(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if old.get("fingerprint") == new["fingerprint"]:
        return
    changed = [
        f"{name} was {old.get('settings', {}).get(name)!r}, now {value!r}"
        for name, value in new["settings"].items()
        if old.get("settings", {}).get(name) != value
    ]
    changed += [f"the {part} changed" for part in ("source", "calibration") if old.get(part) != new[part]]
    detail = "; ".join(changed) or "it was made by another version"
    raise InputError(f"{out}: holds a run that does not match ({detail}). Use the same settings, or --force to restart")


def _quantize_matrix(
    quantizer: Method,
    settings: dict[str, QuantizeSettings],
    hessians: dict[str, np.ndarray],
    fisher: dict[str, np.ndarray],
    name: str,
    weights: np.ndarray,
) -> QuantizedMatrix:
    extra = (fisher[name],) if name in fisher else ()
    return quantizer(weights, hessians[name], settings[name], *extra)


def _quantize_block(
    block: nn.Module, layer: int, spec: ModelSpec, quantize: Callable[[str, np.ndarray], QuantizedMatrix],
    report: Reporter,
) -> tuple[dict[str, np.ndarray], list[TensorRecord]]:  # fmt: skip
    """Quantize the block's linear layers in place; returns everything its shard stores."""
    tensors: dict[str, np.ndarray] = {}
    records: list[TensorRecord] = []
    prefix = spec.prefix(layer)
    for name in spec.block.linears():
        module = block.get_submodule(name)
        result = quantize(name, get_weight(module))
        damping = result.losses.get("damping")
        if damping is not None:
            report.note(f"{prefix}{name}: Hessian is singular, damping raised to {damping:g} of its mean diagonal")
        set_weight(module, result.dequantized())
        parts, record = result.stored(prefix + name)
        tensors |= parts
        records.append(record)
        report.step(f"block {layer + 1}/{spec.layers} {name}")
    linear_weights = {f"{name}.weight" for name in spec.block.linears()}
    for name, parameter in block.named_parameters():
        if name not in linear_weights:
            tensors[prefix + name], record = _dense(prefix + name, parameter.detach().numpy())
            records.append(record)
    return tensors, records


def _dense(name: str, values: np.ndarray) -> tuple[np.ndarray, TensorRecord]:
    array = np.ascontiguousarray(values, dtype=np.float32)
    return array, TensorRecord(name, "float32", array.shape, array.nbytes)


def _restore(block: nn.Module, path: Path, spec: ModelSpec, layer: int) -> None:
    """Put the dequantized weights of a finished shard into the block."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    records = {record.name: record for record in read_shard_records(path)}
    prefix = spec.prefix(layer)
    for name in spec.block.linears():
        full = prefix + name
        stored = QuantizedMatrix.restored(records[full], partial(_part, tensors, full))
        set_weight(block.get_submodule(name), stored.dequantized())


def _part(tensors: dict[str, np.ndarray], name: str, suffix: str) -> np.ndarray | None:
    return tensors.get(name + suffix)


def _outside(
    source: SourceModel, spec: ModelSpec, settings: QuantizeSettings
) -> tuple[dict[str, np.ndarray], list[TensorRecord]]:
    """Embedding, positions, final norm and head: uniform codes with a scale per row, or float16."""
    tensors: dict[str, np.ndarray] = {}
    records: list[TensorRecord] = []
    shapes = {spec.embedding: (spec.vocab_size, spec.hidden_size)}
    if spec.position_embedding:
        shapes[spec.position_embedding] = (spec.context_length, spec.hidden_size)
    if not spec.tied_head:
        shapes[spec.head] = (spec.vocab_size, spec.hidden_size)
    for name, shape in shapes.items():
        weights = source.tensor(f"{name}.weight", shape).numpy()
        if settings.embedding_bits <= 8:
            result = rtn.quantize(weights, None, QuantizeSettings(method="rtn", bits=settings.embedding_bits))
            parts, record = result.stored(name)
        else:
            dtype = np.float16 if np.abs(weights).max() <= np.finfo(np.float16).max else np.float32
            parts = {f"{name}.weight": weights.astype(dtype)}
            record = TensorRecord(name, np.dtype(dtype).name, shape, parts[f"{name}.weight"].nbytes)
        tensors |= parts
        records.append(record)
    for name in (f"{spec.final_norm}.weight", f"{spec.final_norm}.bias", f"{spec.head}.bias"):
        if source.has(name):
            tensors[name], record = _dense(name, source.tensor(name).numpy())
            records.append(record)
    return tensors, records


def _finish(out: Path, manifest: dict[str, Any], spec: ModelSpec, prefix: str) -> QuantizedCheckpoint:
    """Write the final manifest with every tensor's record and the totals; drop shards that were superseded."""
    records = [r for shard in shard_names(spec.layers, prefix) for r in read_shard_records(out / shard)]
    summary = {"shard_prefix": prefix, "totals": totals(records, spec), "tensors": [r.to_json() for r in records]}
    write_json(out / MANIFEST, {**manifest, **summary})
    if prefix:
        for name in shard_names(spec.layers):
            (out / name).unlink(missing_ok=True)
    return QuantizedCheckpoint(out)


def totals(records: list[TensorRecord], spec: ModelSpec) -> dict[str, Any]:
    """Bytes and effective bits over the linear layers of the blocks, and over everything stored."""
    linears = set(spec.quantizable())
    chosen = [r for r in records if r.name in linears]
    weights = sum(int(np.prod(r.shape)) for r in chosen)
    everything = sum(int(np.prod(r.shape)) for r in records)
    return {
        "effective_bits": 8 * sum(r.bytes for r in chosen) / weights,
        "linear_weights": weights,
        "linear_bytes": sum(r.bytes for r in chosen),
        "parameters": everything,
        "bytes": sum(r.bytes for r in records),
        "effective_bits_all": 8 * sum(r.bytes for r in records) / everything,
    }
