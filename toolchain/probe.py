"""Predicts what a quantization will take, by doing a small part of it: one block, two sequences, some rows a layer.

Every figure is a measurement of the very code that will run, scaled to all blocks, sequences and rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from export.archs import model_spec
from runtime_py.memory import peak_rss
from toolchain import calibration
from toolchain.blocks import BlockRunner, get_weight
from toolchain.pipeline import CalibrationChoice, open_source
from toolchain.quantize import method, rtn
from toolchain.quantize.hessian import damped, inverse_factor
from toolchain.quantize.settings import QuantizeSettings
from toolchain.source import SourceModel, resolve
from toolchain.threads import fixed_rounding, thread_count

_SEQUENCES = 2
_ROWS = 512  # of each layer and for each thread; the solvers work in slabs of about this size
T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What a run will take on this machine."""

    seconds: float
    peak_bytes: int  # resident memory
    output_bytes: int  # quantized checkpoint
    effective_bits: float  # over the linear layers
    parameters: int
    notes: tuple[str, ...]

    @property
    def seconds_per_million(self) -> float:
        return self.seconds / (self.parameters / 1e6)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds_per_million": self.seconds_per_million}


def predict(model: str, settings: QuantizeSettings, choice: CalibrationChoice) -> Prediction:
    """Probe this model and these settings. Raises InputError for what quantize_model would refuse."""
    with fixed_rounding():
        return _predict(model, settings, choice)


def _predict(model: str, settings: QuantizeSettings, choice: CalibrationChoice) -> Prediction:
    quantizer = method(settings.method)
    folder = resolve(model)
    spec = model_spec(SourceModel(folder).config)
    source = open_source(folder, spec, settings)
    length = min(settings.sequence_length, spec.context_length)
    text = calibration.slice_text(calibration.calibration_text(choice.source), choice.part)
    tokenizer = calibration.load_tokenizer(folder)
    data = calibration.sample_sequences(
        text, tokenizer, vocab_size=spec.vocab_size, source=choice.source, count=settings.sequences, length=length,
        seed=settings.seed,
    )  # fmt: skip
    sequences = data.tokens.shape[0]
    few = data.tokens[: min(_SEQUENCES, sequences)]
    share = sequences / len(few)
    runner, names = BlockRunner(source, spec), spec.block.linears()
    embedding, hidden = _timed(lambda: runner.embed(few))
    loading, block = _timed(lambda: runner.load_block(0))
    runner.run(block, hidden[:1])  # the first call of a block pays for set-up
    passing, found = _timed(lambda: runner.hessians(block, names, hidden))
    running, _ = _timed(lambda: runner.run(block, hidden))
    seconds, stored, weights = _layers(block, names, found[0], quantizer, settings)
    matrices, rows = _outside(source, spec, settings)
    parameters = weights * spec.blocks + matrices
    peak = peak_rss() + int(hidden.element_size() * hidden.nelement() * (share - 1) * 2)
    return Prediction(
        seconds=share * (embedding + spec.layers * (passing + running)) + spec.blocks * (loading + seconds) + rows,
        peak_bytes=peak,
        output_bytes=int(stored * spec.blocks + matrices * min(settings.embedding_bits, 16) / 8),
        effective_bits=8 * stored / weights,
        parameters=parameters,
        notes=_left_out(settings),
    )


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _layers(
    block: Any, names: tuple[str, ...], hessians: dict[str, np.ndarray], quantizer: Any, settings: QuantizeSettings
) -> tuple[float, float, int]:
    """Seconds, stored bytes and weights of one block's linear layers."""
    seconds, stored, count = 0.0, 0.0, 0
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for name in names:
        weights = get_weight(block.get_submodule(name))
        if weights.shape not in known:
            rows = min(_ROWS * thread_count(), weights.shape[0])
            extra = (np.ones_like(weights[:rows]),) if settings.method == "squeezellm" else ()
            quantizer(weights[: min(rows, 8)], hessians[name], settings, *(e[:8] for e in extra))  # compiles
            fixed = 0.0
            if settings.method in ("athena", "gptq"):
                fixed, _ = _timed(lambda h=hessians[name]: inverse_factor(damped(h, settings.damping)[0]))  # type: ignore[misc]
            whole, result = _timed(
                lambda w=weights[:rows], h=hessians[name], e=extra: quantizer(w, h, settings, *e)  # type: ignore[misc]
            )
            size = result.stored("probe")[1].bytes
            factor = weights.shape[0] / rows
            known[weights.shape] = fixed + max(whole - fixed, 0.0) * factor, size * factor
        seconds, stored, count = (
            seconds + known[weights.shape][0],
            stored + known[weights.shape][1],
            count + weights.size,
        )
    return seconds, stored, count


def _outside(source: SourceModel, spec: Any, settings: QuantizeSettings) -> tuple[int, float]:
    """Weights of the matrices outside the blocks, and the seconds to store them."""
    shapes = spec.outside().values()
    rows, weights = sum(shape[0] for shape in shapes), sum(shape[0] * shape[1] for shape in shapes)
    sample = source.tensor(f"{spec.embedding}.weight")[:256].numpy()
    if settings.embedding_bits > 8:
        return weights, 0.0
    one = QuantizeSettings(method="rtn", bits=settings.embedding_bits)
    seconds, _ = _timed(lambda: rtn.quantize(sample, None, one))
    return weights, seconds * rows / len(sample)


def _left_out(settings: QuantizeSettings) -> tuple[str, ...]:
    notes = []
    if settings.tune_steps:
        notes.append(
            f"not counted: {settings.tune_steps} tuning steps, and about 24 bytes of memory a parameter for them"
        )
    if settings.guided or settings.is_budget or settings.method == "squeezellm":
        notes.append("not counted: the backward passes that measure gradients, which hold the whole model in memory")
    return tuple(notes)
