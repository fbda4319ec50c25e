"""End-to-end tuning: all codes, codebooks, scales, norms and biases together, on the KL to the full-precision model.

After the blocks have been quantized one by one, the whole quantized model is trained for some steps so that its output
distribution follows the source model's on the calibration text (knowledge distillation, arXiv 1503.02531; the idea of
tuning discrete codes by straight-through gradients is PV-tuning's, arXiv 2405.14852, in its simplest form). Needs the
whole model in memory several times: 21 bytes per parameter, or 15 where products are of bfloat16, and what two windows
under way take.

The state is saved every minute, and the batch of a step depends on the seed and the step alone, so that a killed run
continues to the same result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from export.files.access import replacing
from toolchain.calibrate.gradients import row_weights
from toolchain.calibrate.own_text import CHUNK, OwnText
from toolchain.tune.adam import Trained, update
from toolchain.tune.divergence import Parted, divergence
from toolchain.tune.microbatch import accumulate, code_widths, take_turns, trainable_parameters
from toolchain.tune.trainable.base import TrainableMatrix

STATE_FILE = "tuning-state.safetensors"
_SAVE_INTERVAL = 60.0  # seconds
_WARM_UP = 20  # steps
HOLD = 4  # steps between two searches for codes that take long: best paths of trellis codes are a fifth of a step
# Tokens for each weight from which on everything learns at the full rate. From fewer, Adam mostly follows the noise of
# single batches: what codes are found for wanders, and what few numbers carry (codebooks, scales, norms, biases) fits
# the text. SmolLM2-135M at 3.1 bits (0.0002 to 0.0014 tokens a weight), KL on WikiText-2, codes and the rest at these
# rates. 24 steps of 4 x 256 tokens: untuned 0.329, both at 0.005 0.312, 0.005 and 0.001 0.306, 0.0075 and 0.0005 0.313,
# 0.0025 and 0.01 0.330. `best`: 178 steps, both at 0.0075 0.259, 90 steps at 0.006 and 0.001 0.237. stories260K after
# 150 steps of 8 x 256 (1.2 a weight): 0.173 all at one rate, 0.197 the rest at a fifth.
_FULL_RATE = 0.1
_LEAST_OF_CODES, _LEAST_OF_REST = 0.8, 0.13  # of the full rate
TOGETHER = 1  # windows that share a pass: two take a gigabyte more for 135 million parameters, and as long


def default_rate(bits: float) -> float:
    """Learning rate for a code width: a step of the latent weights should stay well below the distance of two levels.

    Measured, KL on unseen text. Scalar codes, stories260K, 500 steps of 8 x 256 tokens: 4 bits 0.051 at 0.001, 0.039 at
    0.003, 0.050 at 0.01; 3 bits 0.151 at 0.003, 0.148 at 0.01. Trellis codes, 200 steps, 3 bits: 0.234 at 0.0025, 0.189
    at 0.005, 0.172 at 0.01, 0.220 at 0.02; scribe-6M, 60 steps, 3.08 bits: 0.00412 at 0.001, 0.00395 at 0.002, 0.00381
    at 0.005.
    """
    return 0.06 / 2**bits


@dataclass(frozen=True)
class TuneSettings:
    """How long and how fast to train."""

    steps: int
    rate: float  # of Adam, relative to the root mean square of each tensor; falls linearly to zero. 0: by width
    bits: int  # width of most layers, which norms and biases go by
    batch: int = 8  # windows a step
    seed: int = 0
    own_text: float = 0.0  # share of the windows that the teacher writes itself

    @property
    def own_windows(self) -> int:
        """How many windows of a step the teacher writes."""
        return round(self.own_text * self.batch)

    def rate_of(self, bits: float | None, codes: bool, tokens: float) -> float:
        """The learning rate in a layer with codes of `bits` (None: elsewhere), of what codes are found for or the rest.

        A rate that was asked for is that of codes. tokens: those of all steps, for each weight that has a code.
        """
        share, known = min(tokens / _FULL_RATE, 1.0), default_rate(self.bits if bits is None else bits)
        if codes:
            return self.rate or known * max(share, _LEAST_OF_CODES)
        return (self.rate or known) * max(share, _LEAST_OF_REST)


class Tuner:
    """Trains a student model (its linear layers already trainable: TrainableLinear and its like) towards a teacher."""

    def __init__(
        self, teacher: PreTrainedModel, student: PreTrainedModel, windows: np.ndarray, settings: TuneSettings,
        folder: Path,
    ) -> None:  # fmt: skip
        """windows: token ids int64 [count, length], one running text; folder: where the state is kept."""
        self.teacher, self.student, self.windows, self.settings = teacher, student, windows, settings
        self._state_path = folder / STATE_FILE
        self._named = trainable_parameters(student)
        self._guide, self._parts = Parted(teacher), Parted(student)
        self._trained, widths = list[Trained](), code_widths(student)
        weights = sum(p.numel() for name, p in self._named.items() if name.endswith(".latent"))
        tokens = settings.steps * settings.batch * windows.shape[1] / max(weights, 1)
        for name, parameter in self._named.items():
            rate = settings.rate_of(widths.get(name), name.endswith(".latent"), tokens)
            self._trained.append(Trained.of(name, parameter, rate))
        own = min(settings.steps * settings.own_windows, CHUNK) or 1
        self._own = OwnText(teacher, windows.reshape(-1), windows.shape[1], settings.seed, own)
        self.step = 0
        self._load()

    def run(self) -> Iterator[tuple[int, float]]:
        """Train to the end, yielding (step, KL in nats per token) after each step."""
        saved = time.monotonic()
        while self.step < self.settings.steps:
            loss = self._train_step()
            yield self.step, loss
            if self.step % HOLD == 0 and time.monotonic() - saved > _SAVE_INTERVAL:  # held paths are not saved
                self._save()
                saved = time.monotonic()
        take_turns(self.student, 0)
        self._weigh()
        self._hold(False)

    def _hold(self, held: bool) -> None:
        for module in self.student.modules():
            if isinstance(module, TrainableMatrix):
                module.hold(held)

    @torch.no_grad()
    def _weigh(self) -> None:
        """Let codes that serve several rows go by what these rows' gradients have been; nothing before the first."""
        squares = {own.name: own.square for own in self._trained} if self.step else {}
        for name, module in self.student.named_modules():
            if isinstance(module, TrainableMatrix) and f"{name}.latent" in squares:
                rows = squares[f"{name}.latent"].float().mean(dim=1)
                module.weigh(torch.from_numpy(row_weights(rows.cpu().numpy())).to(rows.device))

    def _train_step(self) -> float:
        s = self.settings
        factor = min(1.0, (self.step + 1) / min(_WARM_UP, s.steps // 4 + 1)) * (1.0 - self.step / s.steps)
        if self.step % HOLD == 0:
            self._weigh()
            self._hold(True)
        take_turns(self.student, self.step)
        device = next(self.teacher.parameters()).device
        tokens = torch.from_numpy(self._windows_of(self.step)).to(device)

        def loss_of(part: slice) -> torch.Tensor:
            with torch.no_grad():
                wanted = self._guide.states(tokens[part])
            return divergence(*self._parts.states(tokens[part]), *wanted, self._parts.trained)

        loss = accumulate(self.student, loss_of, len(tokens), TOGETHER)
        self.step += 1
        update(self._trained, self.step, factor, device)
        return loss

    def _windows_of(self, step: int) -> np.ndarray:
        """Token ids of a step, int64 [batch, length]: from the text, and written by the teacher."""
        s, length = self.settings, self.windows.shape[1]
        # anywhere in the text: more windows than there are slots, so that few are seen twice
        count = min(s.batch - s.own_windows, len(self.windows))
        starts = np.random.default_rng((s.seed, step)).integers(0, self.windows.size - length + 1, count)
        stream = self.windows.reshape(-1)
        own = self._own.windows(step * s.own_windows, s.own_windows)
        return np.concatenate([own, *(stream[None, start : start + length] for start in starts)])

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for own in self._trained:
            tensors[f"parameter.{own.name}"] = own.parameter.detach()
            tensors |= {f"mean.{own.name}": own.mean, f"square.{own.name}": own.square}
        with replacing(self._state_path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step)})

    def _load(self) -> None:
        """Continue from a saved state; one that cannot be read is ignored, tuning then starts again."""
        from safetensors import safe_open

        if not self._state_path.exists():
            return
        try:
            tensors = load_file(self._state_path)
            with safe_open(self._state_path, framework="pt") as file:
                step = int((file.metadata() or {})["step"])
            found = [
                (tensor, tensors[f"{name}.{own.name}"].reshape(tensor.shape))
                for own in self._trained
                for name, tensor in (("parameter", own.parameter), ("mean", own.mean), ("square", own.square))
            ]  # all are there before anything is changed
            with torch.no_grad():
                for tensor, saved in found:
                    tensor.copy_(saved)
            self.step = step
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError):
            self._state_path.unlink(missing_ok=True)
