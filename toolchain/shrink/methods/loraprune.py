"""Structured pruning led by the gradients of low-rank adapters (LoRAPrune, arXiv 2305.18403), written anew from there.

Adapters W + scale B A are trained on the calibration text while heads and channels go. The gradient of W itself is
never made: it is taken for dB A + B dA - dB dA, the change of B A in a step of gradient descent (section 3.2). A
weight's importance is the square of that times the weight with its adapter; it is summed over what would go with a
head or channel, each matrix relative to its norm, and averaged over steps, 0.9 of what was before. How much has gone
follows the cubic schedule (arXiv 1710.01878) between a tenth of the steps of warm-up and a tenth of cool-down. What has
gone are zeros in the inputs of the matrices that read it. At the end adapters are merged and the rest is sliced.

Gradients and optimizer are those of the adapters: beside the model, memory is for them and for activations.
The paper leaves the first tenth of the layers and the last one whole; widths are one for all layers here, as a
config.json says them, so every layer is cut to the same sizes and chooses its own heads and channels.
"""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from export.files.access import replacing
from export.graph.spec import ModelSpec
from toolchain.calibrate.own_text import whole_model
from toolchain.settings.shrinking.shrink import ShrinkSettings
from toolchain.shrink.methods.magnitude import summed_scores
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cut import Cut, Sizes, cut_by_scores
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.slicing import cut_tensors, slices
from toolchain.shrink.parts.work import Choice, Work
from toolchain.system.device import CPU, each
from toolchain.system.progress import Reporter

_STATE, _SAVE_INTERVAL = "loraprune.safetensors", 60.0  # seconds
_KEPT, _EVERY, _WARM = 0.9, 10, 0.1  # of the average; steps between two masks; share of warm-up, and of cool-down
_ALPHA = 2.0  # scale: alpha over rank, 16 / 8 in the paper


class Adapted(nn.Module):
    """A linear layer with a low-rank term that is trained; inputs are multiplied with `mask` first."""

    def __init__(self, inner: nn.Module, rank: int, draws: torch.Generator) -> None:
        super().__init__()
        weight = inner.weight
        assert isinstance(weight, torch.Tensor)
        self.inner = inner
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1], generator=draws) / math.sqrt(weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mask is not None:
            x = x * self.mask
        out: torch.Tensor = self.inner(x) + _ALPHA * ((x @ self.a.T) @ self.b.T)
        return out

    def merged(self) -> torch.Tensor:
        """W + scale B A, [N, K]."""
        weight = self.inner.weight
        assert isinstance(weight, torch.Tensor)
        return (weight + _ALPHA * (self.b @ self.a)).detach()


def estimated_gradient(a: torch.Tensor, b: torch.Tensor, of_a: torch.Tensor, of_b: torch.Tensor) -> torch.Tensor:
    """dB A + B dA - dB dA, [N, K], from a [R, K], b [N, R] and their gradients: what stands for the gradient of W."""
    return of_b @ a + b @ of_a - of_b @ of_a


def share_gone(step: int, steps: int) -> float:
    """How much of what is to go has gone after `step` steps, 0 to 1, by the cubic schedule."""
    begin, end = _WARM * steps, (1 - _WARM) * steps
    at = min(max((step - begin) / max(end - begin, 1.0), 0.0), 1.0)
    return 1 - (1 - at) ** 3


def sizes_at(own: Sizes, aim: Sizes, gone: float) -> Sizes:
    """Sizes on the way from the source's own to the aim."""

    def between(first: int, last: int) -> int:
        return last + math.ceil((1 - gone) * (first - last))

    groups, each_group = between(own.kv_heads, aim.kv_heads), between(own.group, aim.group)
    return Sizes(own.layers, groups * each_group, groups, between(own.feed_forward, aim.feed_forward))


class AdapterPruning:
    """Trains the adapters of a model, and what they say of its heads and channels."""

    def __init__(self, work: Work, aim: Sizes) -> None:
        self._spec, self._aim, self._settings, self._seed = work.spec, aim, work.settings.adapters, work.settings.seed
        self._tokens, self._state = work.tokens(), work.folder / _STATE
        self.model = whole_model(work.source, work.precision)
        self.layers: dict[str, Adapted] = {}
        draws = torch.Generator().manual_seed(self._seed % 2**63)
        for name in self._spec.quantizable():
            layer = Adapted(self.model.get_submodule(name), self._settings.prune_rank, draws)
            self.layers[name] = layer
            self.model.set_submodule(name, layer)
        self._parameters = {
            f"{name}.{part}": getattr(layer, part) for name, layer in self.layers.items() for part in ("a", "b")
        }
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=self._settings.prune_rate)
        self.heads = np.zeros((self._spec.layers, self._spec.heads))
        self.channels = np.zeros((self._spec.layers, self._spec.feed_forward))
        self.step = 0
        self._load()

    def cut(self, gone: float = 1.0) -> Cut:
        """What would be kept when so much has gone."""
        sizes = sizes_at(Sizes.of(self._spec), self._aim, gone)
        return cut_by_scores(sizes, self._spec, range(self._spec.layers), self.heads, self.channels)

    def run(self, report: Reporter) -> None:
        saved = time.monotonic()
        while self.step < self._settings.prune_steps:
            loss = self._train_step()
            report.step(f"loss {loss:.3f}")
            if time.monotonic() - saved > _SAVE_INTERVAL:
                self._save()
                saved = time.monotonic()

    def _train_step(self) -> float:
        count = min(self._settings.prune_batch, len(self._tokens))
        chosen = np.random.default_rng((self._seed, self.step)).choice(len(self._tokens), count, replace=False)
        parameters = list(self._parameters.values())

        def one(i: int) -> tuple[float, tuple[torch.Tensor, ...]]:
            ids = torch.from_numpy(self._tokens[i : i + 1])
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss / count
            return float(loss.detach()), torch.autograd.grad(loss, parameters)

        total = 0.0
        for loss, gradients in each(one, np.sort(chosen).tolist(), CPU):
            total += loss
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._weigh()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % _EVERY == 0:
            self._mask()
        return total

    def _weigh(self) -> None:
        """Take this step's importance into the averages."""
        with torch.no_grad():
            for number in range(self._spec.layers):
                values = {}
                for name in self._spec.block.linears():
                    layer = self.layers[self._spec.block_name(number) + name]
                    assert layer.a.grad is not None and layer.b.grad is not None
                    gradient = estimated_gradient(layer.a, layer.b, layer.a.grad, layer.b.grad)
                    square = (gradient * layer.merged()).square().double()
                    values[name] = square / (float(square.square().sum().sqrt()) or 1.0)
                heads, channels = summed_scores(self._spec, values, relative=False)
                self.heads[number] = _KEPT * self.heads[number] + (1 - _KEPT) * heads
                self.channels[number] = _KEPT * self.channels[number] + (1 - _KEPT) * channels

    def _mask(self) -> None:
        """Zeros in the inputs of the matrices that read what has gone."""
        gone = share_gone(self.step, self._settings.prune_steps)
        if gone == 0:
            return
        for number, part in enumerate(self.cut(gone).parts):
            for name, kept in slices(self._spec, part).items():
                if kept.columns is not None:
                    layer = self.layers[self._spec.block_name(number) + name]
                    mask = torch.zeros(layer.a.shape[1])
                    mask[torch.from_numpy(kept.columns)] = 1
                    layer.mask = mask

    def _save(self) -> None:
        tensors = {f"parameter.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            tensors |= {f"{key}.{name}": value for key, value in self._optimizer.state[parameter].items()}
        tensors |= {f"mask.{name}": x.mask for name, x in self.layers.items() if x.mask is not None}
        tensors |= {"heads": torch.from_numpy(self.heads), "channels": torch.from_numpy(self.channels)}
        with replacing(self._state) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step)})

    def _load(self) -> None:
        """Go on from a saved state; one that cannot be read is ignored."""
        if not self._state.exists():
            return
        try:
            tensors = load_file(self._state)
            with safe_open(self._state, framework="pt") as file:
                step = int((file.metadata() or {})["step"])
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(tensors[f"parameter.{name}"])
                    known = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                    self._optimizer.state[parameter] = known
            for name, layer in self.layers.items():
                layer.mask = tensors.get(f"mask.{name}")
            self.heads[:], self.channels[:] = tensors["heads"].numpy(), tensors["channels"].numpy()
            self.step = step
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError):
            self._state.unlink(missing_ok=True)


def check(freedom: Freedom, budget: Budget, settings: ShrinkSettings) -> None:
    """Raises InputError for a budget that nothing meets."""
    budget.even(freedom, settings.multiple)


def choose(work: Work) -> Choice:
    """All layers, cut evenly to the budget, adapters merged into what is left."""
    aim = work.budget.even(work.freedom, work.settings.multiple)
    pruning = AdapterPruning(work, aim)
    with Reporter("Pruning", work.settings.adapters.prune_steps, work.quiet) as report:
        report.step("", pruning.step)
        pruning.run(report)
    cut = pruning.cut()
    config = work.freedom.config(aim, cut.layers)
    return Choice(config, partial(cut_tensors, work.source, work.spec, cut, _merged(work.spec, cut, pruning)), cut)


def _merged(spec: ModelSpec, cut: Cut, pruning: AdapterPruning) -> dict[str, np.ndarray]:
    """The sliced weights with their adapters, float32 by layer."""
    found = {}
    for layer, part in zip(cut.layers, cut.parts):
        for name, kept in slices(spec, part).items():
            full = spec.block_name(layer) + name
            found[full] = kept.of_weight(pruning.layers[full].merged()).contiguous().numpy()
    return found
