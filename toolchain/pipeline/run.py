"""Checkpoint in, quantized checkpoint out: streams over the blocks, writes each when done, resumes after a kill.

For block i, calibration states that have passed through the already quantized blocks 0..i-1 give the Hessians; the
block's layers are quantized; the shard is written; the states move on through the quantized block. A resumed run
replays finished blocks from their shards, so its result is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import __version__
from export.artefacts.chat_templates import ADDITIONAL, additional_files
from export.artefacts.checkpoint import (
    FORMAT_VERSION,
    OUTSIDE_SHARD,
    READ_VERSIONS,
    QuantizedCheckpoint,
    block_shard,
    read_shard_records,
    shard_names,
    write_shard,
)
from export.artefacts.generation_config import ignored, read_generation_config
from export.artefacts.records import TensorRecord, standard_bytes
from export.contract.errors import InputError
from export.files.access import MANIFEST, is_temporary, read_json, write_bytes, write_json
from export.files.replace import refuse_foreign
from export.graph.sentence_modules import sentence_files
from export.graph.spec import ModelSpec
from export.model_folder import SMALL_FILES, copy_tokenizer
from runtime_py.system.memory import give_back
from toolchain.calibrate import text as calibration
from toolchain.calibrate.blocks import BlockRunner
from toolchain.numerics.products import chosen_precision
from toolchain.pipeline.blocks.blockwise import BlockQuantizer
from toolchain.pipeline.blocks.plan import Plan
from toolchain.pipeline.kept import keep_blocks, refuse_plain
from toolchain.pipeline.non_block import outside_tensors
from toolchain.quantize import quantizer
from toolchain.settings.calibration import CalibrationChoice, Workers
from toolchain.settings.former import modern_settings
from toolchain.settings.preparation import RESIDUAL, VALUES
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.rules import check_calibrated, check_encoder, check_experts, check_shared_keys
from toolchain.settings.solver import ABQ, GRADIENT_METHODS, KEEP
from toolchain.source.checkpoint import SourceModel, resolve
from toolchain.source.heads import open_model
from toolchain.source.quantization import FIELDS as QUANTIZED_FIELDS
from toolchain.source.tokenizer import write_built_tokenizer
from toolchain.source.transforms.equalization import EqualizedSource
from toolchain.source.transforms.rotation import RotatedSource
from toolchain.system.device import chosen_device
from toolchain.system.threads import fixed_rounding

_IDENTITY = ("format_version", "source", "calibration", "settings", "integers")  # what a resumed run shares


def quantize_model(
    model: str, out: Path, settings: QuantizeSettings, choice: CalibrationChoice, restart: bool = False,
    quiet: bool = False, workers: Workers = Workers(),  # noqa: B008 (frozen)
) -> QuantizedCheckpoint:  # fmt: skip
    """Quantize `model` (folder or hub name) into the quantized checkpoint `out`, continuing what is already there.

    Raises InputError for anything wrong with the model, the text or the settings, and when `out` holds a run with
    other settings (`restart` deletes it instead; a run with the same settings always continues).
    """
    with fixed_rounding():
        return _quantize_model(model, out, settings, choice, restart, quiet, workers)


def _quantize_model(
    model: str, out: Path, settings: QuantizeSettings, choice: CalibrationChoice, restart: bool, quiet: bool,
    workers: Workers,
) -> QuantizedCheckpoint:  # fmt: skip
    device = chosen_device(workers)
    folder = resolve(model)
    read_generation_config(folder)  # what packaging would refuse is refused before the work
    if why := ignored(folder):
        print(f"{why}: the file is ignored", file=sys.stderr)
    source, spec = open_source(folder, settings)
    if not spec.causal:
        check_encoder(settings)
    if settings.method == KEEP:
        return _keep_model(model, source, spec, settings, out, restart, quiet)
    length = min(settings.sequence_length, spec.context_length)
    text = calibration.slice_text(calibration.calibration_text(choice.source, folder), choice.part)
    tokenizer = calibration.load_tokenizer(folder)
    sample = partial(
        calibration.sample_sequences, text, tokenizer, vocab_size=spec.vocab_size, source=choice.source,
        framed=not spec.causal,
    )  # fmt: skip
    data = sample(count=settings.sequences, length=length, seed=settings.seed)
    precision = chosen_precision(workers.precision, spec.hidden_size, device)
    manifest = {**_manifest(model, source, spec, settings, data), "precision": precision, "device": device.type}
    _prepare(out, source, manifest, restart)
    if "totals" in read_json(out / MANIFEST):
        return QuantizedCheckpoint(out)
    if not all((out / block_shard(i)).exists() for i in range(spec.blocks)):
        _quantize_blocks(source, spec, data.tokens, settings, out, quiet, workers, precision, device)
    if not (out / OUTSIDE_SHARD).exists():
        write_shard(out / OUTSIDE_SHARD, *outside_tensors(source, spec, settings))
    prefix = ""
    if spec.causal and (steps := settings.steps_for(_parameters(out, spec))):
        from toolchain.tune.checkpoint import TUNED_PREFIX, tune_checkpoint

        windows = sample(count=None, length=min(settings.tune_length, spec.context_length), seed=settings.seed)
        tune_checkpoint(source, spec, out, settings, steps, windows.tokens, quiet, precision, device)
        prefix = TUNED_PREFIX
    return _finish(out, manifest, spec, prefix)


def _keep_model(
    model: str, source: SourceModel, spec: ModelSpec, settings: QuantizeSettings, out: Path, restart: bool, quiet: bool
) -> QuantizedCheckpoint:
    """The checkpoint of a source whose codes stay as they are: no text is read."""
    refuse_plain(source)
    manifest = _manifest(model, source, spec, settings, calibration.CalibrationData(np.zeros((0, 0)), "none", ""))
    _prepare(out, source, manifest, restart)
    if "totals" in read_json(out / MANIFEST):
        return QuantizedCheckpoint(out)
    keep_blocks(source, spec, out, quiet)
    if not (out / OUTSIDE_SHARD).exists():
        write_shard(out / OUTSIDE_SHARD, *outside_tensors(source, spec, settings))
    return _finish(out, manifest, spec, "")


def open_source(folder: Path, settings: QuantizeSettings) -> tuple[SourceModel, ModelSpec]:
    """The checkpoint as it is quantized (rotated and equalized where the settings say so), and what it describes."""
    source, spec = open_model(folder)
    if spec.has_experts:
        check_experts(settings, spec)
    check_shared_keys(settings, spec)
    check_calibrated(settings, spec)
    source.print_notes()
    if settings.rotates(VALUES) or settings.rotates(RESIDUAL):
        source = RotatedSource(source, spec, settings.rotation, settings.seed)
    return EqualizedSource(source, spec) if settings.equalize else source, spec


def _quantize_blocks(
    source: SourceModel, spec: ModelSpec, tokens: np.ndarray, settings: QuantizeSettings, out: Path, quiet: bool,
    workers: Workers, precision: str, device: torch.device,
) -> None:  # fmt: skip
    """Everything that needs the calibration tokens: gradients and bit allocation where asked, then block by block."""
    if settings.own_text:
        from toolchain.calibrate.own_text import mixed

        tokens = mixed(source, tokens, settings.own_text, settings.seed, precision, device)
        give_back()
    runner = BlockRunner(source, spec, precision, device, maps=settings.method == ABQ)
    per_weight = settings.method in GRADIENT_METHODS or settings.needs_weight_gradients
    gradients, plan = None, Plan()
    if per_weight or (settings.guided and spec.causal):
        from toolchain.calibrate.gradients import measure_gradients, with_gradients

        chosen = with_gradients(settings.gradient_sequences, len(tokens))
        gradients = measure_gradients(
            source, spec, tokens[chosen], quiet, per_weight, settings.guided_groups, precision, device
        ).among(chosen, len(tokens))
        give_back()
    if settings.is_budget or (settings.spread and spec.causal):
        from toolchain.pipeline.allocation import plan_widths

        plan = plan_widths(runner, spec, tokens, settings, quantizer(settings, device), out, quiet, gradients)
        give_back()
    BlockQuantizer(runner, spec, settings, gradients, plan, workers).run(tokens, out, quiet)
    give_back()


def _manifest(
    model: str, source: SourceModel, spec: ModelSpec, settings: QuantizeSettings, data: calibration.CalibrationData
) -> dict[str, Any]:
    about = {"name": Path(model).name or model, "model_type": spec.model_type, "digest": source.fingerprint()}
    if source.stored_as:
        about["stored_as"] = source.stored_as
    identity = {
        "format_version": FORMAT_VERSION,
        "source": about,
        "calibration": {"source": Path(data.source).name, "shape": list(data.tokens.shape), "digest": data.digest},
        "settings": settings.to_json(),
        "integers": settings.arithmetic().to_json(),
    }
    return {"tool_version": __version__, **identity, "fingerprint": _fingerprint(identity), "blocks": spec.blocks}


def _fingerprint(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _is_same_run(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a manifest found on disk, perhaps with settings by their former names, is of the run `new`."""
    known = {name: old.get(name) for name in _IDENTITY}
    if known["format_version"] in READ_VERSIONS:
        known["format_version"] = FORMAT_VERSION
    today = _fingerprint({**known, "settings": modern_settings(known["settings"])})
    return new["fingerprint"] in (old.get("fingerprint"), today)


def _prepare(out: Path, source: SourceModel, manifest: dict[str, Any], restart: bool) -> None:
    """Create the output folder, or check that what it holds belongs to the same run."""
    begun = out.with_name(f".{out.name}.begun")  # complete or not there: a kill while it is filled leaves no half of it
    shutil.rmtree(begun, ignore_errors=True)
    if (out / MANIFEST).exists():
        old = read_json(out / MANIFEST)
        if not restart or _is_same_run(old, manifest):
            _refuse_changes(out, old, manifest)
            _write_small_files(source, begun)
            _refresh(out, begun)
            return
        refuse_foreign(out)
        shutil.rmtree(out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a quantized checkpoint; choose another folder")
    _write_small_files(source, begun)
    write_json(begun / MANIFEST, manifest)
    if out.exists():
        out.rmdir()
    begun.rename(out)


def _write_small_files(source: SourceModel, folder: Path) -> None:
    """Everything of the source that a checkpoint has as it came, into the new folder `folder`."""
    folder.mkdir(parents=True)
    try:
        write_json(folder / "config.json", {n: v for n, v in source.config.items() if n not in QUANTIZED_FIELDS})
        copy_tokenizer(source.folder, folder)
        write_built_tokenizer(source.folder, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refresh(out: Path, fresh: Path) -> None:
    """Give a checkpoint the small files as the source has them now: they may have been mended since it was begun."""
    found, kept = _small_files(fresh), _small_files(out)
    for name in kept - found:
        (out / name).unlink()
    for name in found:
        data = (fresh / name).read_bytes()
        if name not in kept or (out / name).read_bytes() != data:
            (out / name).parent.mkdir(exist_ok=True)
            write_bytes(out / name, data)
    shutil.rmtree(fresh)


def _small_files(folder: Path) -> set[Path]:
    """What _write_small_files can have written, and files that a killed run had begun."""
    known = {"config.json", *SMALL_FILES, *(f"{ADDITIONAL}/{path.name}" for path in additional_files(folder))}
    known |= set(sentence_files(folder))
    begun = (path.name for path in folder.iterdir() if is_temporary(path.name))
    return {Path(name) for name in (*known, *begun) if (folder / name).is_file()}


def _refuse_changes(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if _is_same_run(old, new):
        return
    before = modern_settings(old.get("settings"))
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in new["settings"].items()
        if before.get(name) != value
    ]
    changed += [f"the {part} changed" for part in ("source", "calibration") if old.get(part) != new[part]]
    detail = "; ".join(changed) or "it was made by another version"
    raise InputError(f"{out}: holds a run that does not match ({detail}). Use the same settings, or --force to restart")


def _finish(out: Path, manifest: dict[str, Any], spec: ModelSpec, prefix: str) -> QuantizedCheckpoint:
    """Write the final manifest with every tensor's record and the totals; drop shards that were superseded."""
    records = _records(out, spec, prefix)
    summary = {"shard_prefix": prefix, "totals": totals(records, spec), "tensors": [r.to_json() for r in records]}
    write_json(out / MANIFEST, {**manifest, **summary})
    if prefix:
        for name in shard_names(spec.blocks):
            (out / name).unlink(missing_ok=True)
    return QuantizedCheckpoint(out)


def _records(out: Path, spec: ModelSpec, prefix: str) -> list[TensorRecord]:
    return [r for shard in shard_names(spec.blocks, prefix) for r in read_shard_records(out / shard)]


def _parameters(out: Path, spec: ModelSpec) -> int:
    return sum(int(np.prod(r.shape)) for r in _records(out, spec, ""))


def totals(records: list[TensorRecord], spec: ModelSpec) -> dict[str, Any]:
    """Bytes and effective bits over the linear layers of the blocks, and over everything stored."""
    linears = set(spec.quantizable())
    chosen = [r for r in records if r.name in linears]
    weights = sum(int(np.prod(r.shape)) for r in chosen)
    everything = sum(int(np.prod(r.shape)) for r in records)
    shared = standard_bytes(records)
    return {
        "effective_bits": 8 * (sum(r.bytes for r in chosen) + shared) / weights,
        "linear_weights": weights,
        "linear_bytes": sum(r.bytes for r in chosen) + shared,
        "parameters": everything,
        "bytes": sum(r.bytes for r in records) + shared,
        "effective_bits_all": 8 * (sum(r.bytes for r in records) + shared) / everything,
    }
