"""Predicts what a quantization will take, by doing a small part of it: a block of each kind, six sequences, some rows.

Every figure is a measurement of the very code that will run, scaled to all blocks, sequences and rows; what runs
backward is measured by probe_training.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from export.contract.errors import InputError
from export.graph.spec import BlockNames, ModelSpec
from runtime_py.system.memory import peak_rss
from toolchain.calibrate import text as calibration
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.drift import input_moments, reading_order
from toolchain.calibrate.gradients import PLAN_SEQUENCES, with_gradients
from toolchain.calibrate.routing import expert_groups
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.products import chosen_precision
from toolchain.pipeline.non_block import bits_of
from toolchain.pipeline.run import open_source
from toolchain.predict.training import Layer, TrainingProbe
from toolchain.quantize import Method, quantizer
from toolchain.quantize.methods import rtn
from toolchain.settings.calibration import CalibrationChoice, Workers
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import GRADIENT_METHODS
from toolchain.source.checkpoint import SourceModel, resolve
from toolchain.system.device import chosen_device
from toolchain.system.threads import fixed_rounding, thread_count

_SEQUENCES = (2, 6)  # the difference tells what a sequence takes from what a block takes once
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

    @property
    def seconds_per_million(self) -> float:
        return self.seconds / (self.parameters / 1e6)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds_per_million": self.seconds_per_million}


def predict(
    model: str, settings: QuantizeSettings, choice: CalibrationChoice, workers: Workers = Workers()  # noqa: B008 (frozen)
) -> Prediction:  # fmt: skip
    """Probe this model and these settings. Raises InputError for what quantize_model would refuse."""
    with fixed_rounding():
        return _predict(model, settings, choice, workers)


def _predict(model: str, settings: QuantizeSettings, choice: CalibrationChoice, workers: Workers) -> Prediction:
    device = chosen_device(workers)
    solver = quantizer(settings, device)
    folder = resolve(model)
    source, spec = open_source(folder, settings)
    precision = chosen_precision(workers.precision, spec.hidden_size, device)
    length = min(settings.sequence_length, spec.context_length)
    text = calibration.slice_text(calibration.calibration_text(choice.source, folder), choice.part)
    tokenizer = calibration.load_tokenizer(folder)
    data = calibration.sample_sequences(
        text, tokenizer, vocab_size=spec.vocab_size, source=choice.source, count=settings.sequences, length=length,
        seed=settings.seed,
    )  # fmt: skip
    sequences = data.tokens.shape[0]
    few = data.tokens[: min(_SEQUENCES[-1], sequences)]
    share = sequences / len(few)
    runner, base = BlockRunner(source, spec, precision, device), peak_rss()
    embedding, hidden = _timed(lambda: runner.embed(few))
    paths = 2 if settings.asymmetric else 1  # states that are kept and passed on: the model's, and the source's
    if settings.cost_budget:
        raise InputError("--dry-run takes a --budget of bits: widths for a cost are found while quantizing")
    plans = settings.is_budget or (settings.spread and spec.causal)
    kinds = [_Kind.of(runner, names, hidden, solver, settings, plans, sequences) for names in spec.kinds()]
    held = peak_rss()
    matrices, rows = _outside(source, spec, settings)
    weights = sum(kind.blocks * kind.sizes.weights for kind in kinds)
    stored = sum(kind.blocks * kind.sizes.stored for kind in kinds)
    training = TrainingProbe(runner, spec, [(kind.block, kind.layers) for kind in kinds], hidden)
    seconds = share * (embedding + sum(kind.layers * paths * kind.running for kind in kinds))
    seconds += sum(kind.layers * kind.passing(sequences) for kind in kinds)
    seconds += sum(kind.blocks * (kind.loading + kind.sizes.seconds) for kind in kinds) + rows
    peaks = [held + int(hidden.element_size() * hidden.nelement() * (share - 1) * (1 + paths))]
    if settings.own_text:
        cost = training.own_text(round(settings.own_text * sequences), weights + matrices)
        seconds += cost.seconds
        peaks.append(base + cost.bytes)
    per_weight = settings.method in GRADIENT_METHODS or settings.needs_weight_gradients
    guided = settings.guided and spec.causal
    if per_weight or guided:
        looked_at = len(with_gradients(settings.gradient_sequences, sequences))
        cost = training.gradients(looked_at, weights + matrices, per_weight)
        seconds += cost.seconds
        peaks.append(base + cost.bytes)
    if plans:
        looked_at = min(PLAN_SEQUENCES, sequences)
        seconds += sum(kind.layers * kind.passing(looked_at) for kind in kinds)
        if not (per_weight or guided):
            cost = training.gradients(looked_at, weights + matrices, per_weight=False)
            seconds += cost.seconds
            peaks.append(base + cost.bytes)
    if spec.causal and (steps := settings.steps_for(weights + matrices)):
        layers = [layer for kind in kinds for layer in kind.blocks * kind.sizes.layers]
        cost = training.tuning(settings, steps, layers, weights, matrices)
        seconds += cost.seconds
        peaks.append(base + cost.bytes)
    return Prediction(
        seconds=seconds,
        peak_bytes=max(peaks),
        output_bytes=int(stored + _outside_bytes(spec, settings)),
        effective_bits=8 * stored / weights,
        parameters=weights + matrices,
    )


def _hessians(
    runner: BlockRunner, block: Any, twin: Any, hidden: torch.Tensor, guide: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Hessians of a block's layers in the way of the run; twin: the block again where layers follow the source."""
    own, found = runner.names(block), dict[str, np.ndarray]()
    names = own.everyones()
    for number, group in enumerate(expert_groups(own, block)):
        hessians = runner.hessians(block, group, hidden, guide)[0]
        found |= hessians if number == 0 else {}  # all experts have the same shapes
    if twin is None:
        return found | runner.hessians(block, names, hidden, guide)[0]
    for part in reading_order(runner, twin, names, hidden):
        moments = input_moments(runner, (block, twin), part, (hidden, hidden), guide)
        found |= {name: one.hessian for name, one in moments.items()}
    return found


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _extrapolated(small: tuple[int, float], large: tuple[int, float], count: int) -> float:
    """Seconds for `count` pieces from two measurements (pieces, seconds): a fixed part, and one for every piece."""
    if large[0] == small[0]:
        return large[1] * count / large[0]
    each = max(large[1] - small[1], 0.0) / (large[0] - small[0])
    return large[1] + each * (count - large[0])


@dataclass(frozen=True)
class _Sizes:
    """What one block's linear layers take."""

    seconds: float
    stored: float  # bytes
    weights: int
    layers: list[Layer]

    @classmethod
    def of(
        cls, block: Any, names: tuple[str, ...], hessians: dict[str, np.ndarray], quantizer: Method,
        settings: QuantizeSettings, budget: float | None, device: torch.device,
    ) -> _Sizes:  # fmt: skip
        """Quantize some rows of each shape. A budget is met to the byte, so its size is known beforehand."""
        known: dict[tuple[int, ...], tuple[float, float, Layer]] = {}
        total = cls(0.0, 0.0, 0, [])
        for name in names:
            weights = get_weight(block.get_submodule(name))
            if weights.shape not in known:
                planned = budget is not None
                known[weights.shape] = _layer(name, weights, hessians[name], quantizer, settings, planned, device)
            seconds, stored, layer = known[weights.shape]
            stored = stored if budget is None else budget * weights.size / 8
            total = cls(
                total.seconds + seconds, total.stored + stored, total.weights + weights.size, [*total.layers, layer]
            )
        return total


@dataclass(frozen=True)
class _Kind:
    """What the blocks of one kind take, measured on the first of them."""

    block: Any
    blocks: int
    layers: int
    loading: float  # seconds
    running: float  # of the sequences that were looked at, once
    hessians: tuple[tuple[int, float], tuple[int, float]]  # sequences and seconds, twice
    sizes: _Sizes

    @classmethod
    def of(
        cls, runner: BlockRunner, names: BlockNames, hidden: torch.Tensor, solver: Method, settings: QuantizeSettings,
        plans: bool, sequences: int,
    ) -> _Kind:  # fmt: skip
        """hidden: what the first layer gets, for all kinds; sequences: of the whole run."""
        spec, some = runner.spec, min(_SEQUENCES[0], sequences)
        numbers = [number for number in range(spec.blocks) if spec.names(number) == names]
        loading, block = _timed(lambda: runner.load_block(numbers[0]))
        runner.run(block, hidden[:1])  # the first call of a block pays for set-up
        guide = (
            {name: np.ones(hidden.shape[:2], np.float32) for name in names.linears()}
            if settings.guided and spec.causal
            else None
        )
        twin = runner.load_block(numbers[0]) if settings.asymmetric else None
        first, _ = _timed(lambda: _hessians(runner, block, twin, hidden[:some], guide))
        second, found = _timed(lambda: _hessians(runner, block, twin, hidden, guide))
        budget = settings.effective_budget if plans else None
        return cls(
            block=block,
            blocks=len(numbers),
            layers=sum(map(spec.uses, numbers)),
            loading=loading,
            running=_timed(lambda: runner.run(block, hidden))[0],
            hessians=((some, first), (len(hidden), second)),
            sizes=_Sizes.of(block, names.linears(), found, solver, settings, budget, runner.device),
        )

    def passing(self, sequences: int) -> float:
        """Seconds of the Hessians over so many sequences."""
        return _extrapolated(*self.hessians, sequences)


def _layer(
    name: str, weights: np.ndarray, hessian: np.ndarray, quantizer: Method, settings: QuantizeSettings, planned: bool,
    device: torch.device,
) -> tuple[float, float, Layer]:  # fmt: skip
    """Seconds and stored bytes of one linear layer, and its sample: all of it on a device, where rows cost little."""
    rows = min(_ROWS * thread_count(), weights.shape[0]) if device.type == "cpu" else weights.shape[0]
    sample, factor = weights[:rows], weights.shape[0] / rows
    extra = (np.ones_like(sample),) if settings.method in GRADIENT_METHODS else ()
    fixed = 0.0
    if planned or settings.method in ("athena", "gptq"):
        fixed, _ = _timed(lambda: ready_hessian(hessian, settings.damping, device=device))

    def run(chosen: QuantizeSettings) -> tuple[float, Any]:
        quantizer(sample[:8], hessian, chosen, *(e[:8] for e in extra))  # compiles
        whole, result = _timed(lambda: quantizer(sample, hessian, chosen, *extra))
        return fixed + max(whole - fixed, 0.0) * factor, result

    seconds, result = run(settings)
    seconds += fixed if planned else 0.0
    return seconds, result.stored(name)[1].bytes * factor, Layer(name, result, weights.shape[0])


def _outside_bytes(spec: ModelSpec, settings: QuantizeSettings) -> float:
    """Bytes of the codes of the matrices outside the blocks."""
    sizes = ((math.prod(shape), bits_of(name, spec, settings)) for name, shape in spec.outside().items())
    return sum(size * min(bits, 16) for size, bits in sizes) / 8


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
