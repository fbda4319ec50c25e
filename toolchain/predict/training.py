"""What backward passes will take: gradients of the calibration sequences, and end-to-end tuning, measured on one block.

Times are taken in one thread, as every window has one (microbatch.py), and shared out over the threads; on a device
windows follow one another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.gradients import sequences_together, weight_of
from toolchain.calibrate.own_text import WINDOWS
from toolchain.numerics.products import BFLOAT16, FLOAT32, linear
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.device import synchronize
from toolchain.system.threads import thread_count
from toolchain.tune.adam import Trained, update
from toolchain.tune.divergence import POSITIONS
from toolchain.tune.end_to_end import HOLD, TOGETHER
from toolchain.tune.trainable import trainable_layer

_HEAD_ROWS = 4096  # of the head at most; the rest is scaled
_LOGIT_COPIES = 6  # float32 arrays of [positions, vocabulary] at once: logits, their logarithms, gradients
_DRAWING = 1.3  # a token that is drawn against one that is read: scribe-6M, 64 windows together, measured
# A weight's latent value, two moments of half the size and its code; the sum of its gradients, the stored value and the
# teacher's weight, which are of half the size, too, where products are of bfloat16.
_TUNED_BYTES = {FLOAT32: 21, BFLOAT16: 15}


@dataclass(frozen=True)
class Cost:
    """Seconds, and the bytes held at the worst moment."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Layer:
    """A quantized sample of one linear layer: its first rows."""

    name: str
    stored: StoredMatrix
    rows: int  # of the whole layer


class TrainingProbe:
    """Times blocks and the head forward and backward, anew for each question, and scales."""

    def __init__(
        self, runner: BlockRunner, spec: ModelSpec, blocks: Sequence[tuple[nn.Module, int]], hidden: torch.Tensor
    ) -> None:
        """blocks: one of each kind, and how many layers are like it; hidden: inputs [sequences, length, width]."""
        self._runner, self._spec, self._blocks, self._hidden = runner, spec, blocks, hidden[:1]
        self._length, self._width = int(hidden.shape[1]), int(hidden.shape[2])
        self._device = runner.device
        self._threads = thread_count() if self._device.type == "cpu" else 1

    def gradients(self, sequences: int, parameters: int, per_weight: bool) -> Cost:
        """toolchain.calibrate.gradients.measure_gradients over `sequences` sequences."""
        threads = min(self._threads, sequences)
        (reading, back), kept = self._all_times(self._length, per_weight)
        head = self._head_times(self._length)
        seconds = 2 * reading + back + sum(head)
        layers, row = self._spec.layers, 4 * self._length * self._width
        blocks = max(self._runner.block_bytes(number) for number in range(self._spec.blocks))
        states = min(sequences, sequences_together(self._runner, self._length)) * (layers + 1) * row
        ends = 4 * self._spec.hidden_size * self._spec.vocab_size * (1 if self._spec.tied_head else 2)
        passing = blocks * (3 + (threads if per_weight else 0)) + threads * kept // layers
        ending = ends + threads * 3 * 4 * self._length * self._spec.vocab_size
        extra = 4 * parameters if per_weight else 0
        return Cost(seconds * sequences / threads, states + max(passing, ending) + extra)

    def own_text(self, sequences: int, parameters: int) -> Cost:
        """toolchain.calibrate.own_text for `sequences` calibration sequences: the model, keys and values."""
        (reading, _), _ = self._all_times(self._length, per_weight=False)
        writing = (reading + self._head_times(self._length)[0]) * _DRAWING
        spec = self._spec
        row = sum(2 * spec.heads_of(layer).keys for layer in range(spec.layers)) * self._length
        together = min(sequences, self._threads * WINDOWS)
        return Cost(writing * sequences / self._threads, 4 * (parameters + together * row))

    def tuning(self, settings: QuantizeSettings, steps: int, layers: list[Layer], weights: int, outside: int) -> Cost:
        """toolchain.tune.checkpoint for these settings: `weights` in the linear layers, `outside` elsewhere.

        layers: all of the model.
        """
        length = min(settings.tune_length, self._length)
        threads = min(self._threads, -(-settings.tune_batch // TOGETHER))
        (reading, back), kept = self._all_times(length, per_weight=True)
        head_forward, head_back = self._head_times(length)
        window = 2 * reading + back + 2 * head_forward + head_back
        own = settings.own_text * (reading + head_forward) * _DRAWING
        times = {id(layer): _making(layer, self._device) for layer in {id(layer): layer for layer in layers}.values()}
        making = sum(times[id(layer)] for layer in layers) / self._threads / HOLD
        adam = weights * _adam_seconds(self._device) / self._threads
        step = settings.tune_batch * (window + own) / threads + making + adam
        held = kept + _LOGIT_COPIES * 4 * min(length, POSITIONS) * self._spec.vocab_size
        return Cost(
            steps * step,
            _TUNED_BYTES[self._runner.precision] * weights + 2 * 4 * outside + threads * held,
        )

    def _all_times(self, length: int, per_weight: bool) -> tuple[tuple[float, float], int]:
        """Seconds forward and backward of one sequence through all layers, and bytes kept for the way back."""
        reading, back, held = 0.0, 0.0, 0
        for block, count in self._blocks:
            times, kept = self._block_times(block, length, per_weight)
            reading, back, held = reading + count * times[0], back + count * times[1], held + count * kept
        return (reading, back), held

    def _block_times(self, block: nn.Module, length: int, per_weight: bool) -> tuple[tuple[float, float], int]:
        """The same of one block."""
        weights = [weight_of(block.get_submodule(name)) for name in self._runner.names(block).linears()]
        kept: dict[int, int] = {}

        def pack(value: torch.Tensor) -> torch.Tensor:
            if not any(value is weight for weight in weights):
                kept[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
            return value

        for weight in weights:
            weight.requires_grad_(per_weight)
        times = []
        for _ in range(2):  # the first call pays for set-up
            kept.clear()
            hidden = self._hidden[:, : self._length].to(self._device).clone().requires_grad_()
            begun = self._now()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                out = self._runner.forward(block, hidden)
            middle = self._now()
            torch.autograd.grad(out.sum(), [hidden, *(weights if per_weight else [])], allow_unused=True)
            times = [middle - begun, self._now() - middle]
        for weight in weights:
            weight.requires_grad_(False)
        share = length / self._length
        return (times[0] * share, times[1] * share), int(sum(kept.values()) * share)

    def _head_times(self, length: int) -> tuple[float, float]:
        """Seconds of the logits and their log-softmax for one sequence, forward and backward."""
        rows = min(_HEAD_ROWS, self._spec.vocab_size)
        head = torch.randn(rows, self._spec.hidden_size).to(self._device)
        hidden = torch.randn(length, self._spec.hidden_size).to(self._device).requires_grad_()
        begun = self._now()
        out = torch.log_softmax(linear(hidden, head, None, self._runner.precision), dim=-1)
        middle = self._now()
        torch.autograd.grad(out.square().sum(), [hidden])
        factor = self._spec.vocab_size / rows
        return (middle - begun) * factor, (self._now() - middle) * factor

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        return _now(self._device)


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _making(layer: Layer, device: torch.device) -> float:
    """Seconds to make a layer's stored weights and to take their gradient back, in one thread."""
    rows, columns = layer.stored.dequantized().shape
    trainable = trainable_layer(nn.Linear(columns, rows, bias=False).to(device), layer.stored)
    seconds = 0.0
    for _ in range(2):  # the first call compiles
        begun = _now(device)
        weight = trainable.weight_matrix()
        weight.backward(torch.ones_like(weight))
        seconds = _now(device) - begun
    return seconds * layer.rows / rows


def _adam_seconds(device: torch.device) -> float:
    """Seconds a parameter of one Adam step."""
    parameter = nn.Parameter(torch.from_numpy(np.ones(1 << 20, np.float32)).to(device))
    own, seconds = Trained.of("", parameter, 0.0), 0.0
    for step in (1, 2):
        parameter.grad = torch.ones_like(parameter)
        begun = _now(device)
        update([own], step, 1.0, device)
        seconds = _now(device) - begun
    return seconds / parameter.numel()
