"""Calibration of a block's uniform codes: clipping of rows and smoothing of columns, trained together (2408.08554).

Both start at the best of a grid, where the paper starts at 0.98 of the largest magnitude and the square root of the
ratio of activations and weights: some tens of steps are taken then, not 2,560. Smoothing ends up in the weights and
norms of the block (toolchain/source/transforms/sites.py), so nothing of it is left at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from toolchain.calibrate.blocks import BlockRunner, get_weight, set_weight
from toolchain.quantize.methods.abq import levels_of, quantize
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.transforms.sites import Site, sites
from toolchain.system.device import each
from toolchain.tune.clipped import ClippedLinear, Smoothing, Widths, whole
from toolchain.tune.objective import Objective

_POWERS = (0.0, 0.25, 0.5)  # of a channel's activations over its weights that are tried first; 0: no smoothing
_MOST = 64.0  # a factor at most, and at least its inverse
_CLIPPING_RATE, _SMOOTHING_RATE = 0.05, 0.05  # of AdamW, falling linearly to zero
_TRIED, _JUDGED = 4, 16  # sequences that the start is chosen on, and that the result is compared with it on


@dataclass(frozen=True)
class Calibrated:
    """What was found for one block."""

    clipping: dict[str, np.ndarray]  # signed shares [N, 1] by layer
    factors: list[torch.Tensor]  # of each site's channels, on the processor
    before: float  # the loss at the start and at the end
    after: float


def calibrated_block(
    runner: BlockRunner, settings: QuantizeSettings, blocks: tuple[nn.Module, nn.Module], number: int,
    states: tuple[torch.Tensor, torch.Tensor],
) -> tuple[dict[str, StoredMatrix], torch.Tensor, Calibrated]:  # fmt: skip
    """Quantize the first of two equal blocks in place, so that it keeps to the second on calibrated states.

    states: inputs behind the quantized blocks, and the source's own; float32 [sequences, length, hidden]. Also the
    source's outputs on the latter.
    """
    block, source = blocks
    names, places = runner.spec.names(number).linears(), sites(runner.spec, number)
    hessians, _ = runner.hessians(source, names, states[0])
    followed = runner.run(source, states[1])
    lowest, highest = levels_of(settings.width, settings.bit_balance)
    widths = Widths(lowest, highest, settings.razor.activation_bits)
    energies = {name: torch.from_numpy(hessians[name].diagonal() / 2).float().to(runner.device) for name in names}
    calibration = _Calibration(block, places, energies, widths)
    with calibration:
        found = calibration.run(partial(Objective, runner, blocks, states[0], followed), len(states[0]), settings)
    for site, factors in zip(places, found.factors):
        fold(block, site, factors, runner.spec.norm_offset)
        columns = (factors if site.columns is None else factors[site.columns]).double().numpy()
        hessians |= {name: hessians[name] / np.outer(columns, columns) for name in site.readers}
    results = {}
    for name in names:
        module = block.get_submodule(name)
        results[name] = quantize(get_weight(module), hessians[name], settings, found.clipping[name])
        set_weight(module, results[name].dequantized())
    return results, followed, found


def round_inputs(block: nn.Module, names: Iterable[str], bits: int) -> None:
    """Let linear layers of a block read integers of `bits`, as the exported model does; 0: what there is."""

    def rounded(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (whole(inputs[0], bits), *inputs[1:])

    for name in names if bits else ():
        block.get_submodule(name).register_forward_pre_hook(rounded)


@torch.no_grad()
def fold(block: nn.Module, site: Site, factors: torch.Tensor, norm_offset: float) -> None:
    """Move the factors [channels] of a site into the block's parameters; it computes the same."""
    own = factors.numpy()
    columns = own if site.columns is None else own[site.columns]
    for name in (*site.readers, *site.floats):
        module = block.get_submodule(name)
        set_weight(module, get_weight(module) * columns)
    if site.norm is not None:
        norm = block.get_submodule(site.norm)
        for name, parameter in norm.named_parameters(recurse=False):
            offset = norm_offset if name == "weight" else 0.0
            parameter.copy_((parameter + offset) / factors.to(parameter.device) - offset)
    if site.layer is not None and site.rows is not None:
        module = block.get_submodule(site.layer)
        weight = get_weight(module).copy()
        weight[site.rows] /= own[:, None]
        set_weight(module, weight)
        if isinstance(module.bias, torch.Tensor):
            module.bias[site.rows] /= factors.to(module.bias.device)


class _Calibration:
    """A block with trainable layers in place of its linear ones, for as long as the `with` block lasts."""

    def __init__(
        self, block: nn.Module, places: tuple[Site, ...], energies: Mapping[str, torch.Tensor], widths: Widths
    ) -> None:
        self._block, self._places, self._energies, self._widths = block, places, energies, widths
        self._modules = {name: block.get_submodule(name) for name in energies}
        self._layers: dict[str, ClippedLinear] = {}
        self._smoothing: list[Smoothing] = []

    def __enter__(self) -> _Calibration:
        return self

    def __exit__(self, *error: object) -> None:
        for name, module in self._modules.items():
            self._block.set_submodule(name, module)

    def run(self, objective_of: partial[Objective], sequences: int, settings: QuantizeSettings) -> Calibrated:
        """Choose the start, train, and keep the better of the two."""
        tried = range(min(_TRIED, sequences))
        scores = []
        for power in _POWERS:
            self._begin(power)
            with objective_of() as objective:
                scores.append(self._mean(objective, tried))
        self._begin(_POWERS[int(np.argmin(scores))])
        with objective_of() as objective:
            judged = range(0, sequences, -(-sequences // _JUDGED))
            before = after = self._mean(objective, judged)
            start = [p.detach().clone() for p in self._parameters()]
            if settings.block_steps:
                self._train(objective, sequences, settings)
                after = self._mean(objective, judged)
        if not after <= before:
            after = before
            with torch.no_grad():
                for parameter, value in zip(self._parameters(), start):
                    parameter.copy_(value)
        clipping = {name: layer.shares().detach().cpu().double().numpy() for name, layer in self._layers.items()}
        factors = [s.logs.detach().exp().cpu() for s in self._smoothing]
        return Calibrated(clipping, factors, before, after)

    def _begin(self, power: float) -> None:
        """Trainable layers at their start, for a power of activations over weights."""
        self._smoothing, of_reader = [], dict[str, Smoothing]()
        for site in self._places:
            columns = None if site.columns is None else torch.from_numpy(site.columns)
            logs = power * self._ratios(site)
            self._smoothing.append(Smoothing(logs, columns).to(logs.device))
            of_reader |= dict.fromkeys(site.readers, self._smoothing[-1])
        for name, module in self._modules.items():
            self._layers[name] = ClippedLinear(module, self._energies[name], self._widths, of_reader.get(name))
            self._block.set_submodule(name, self._layers[name])

    def _ratios(self, site: Site) -> torch.Tensor:
        """Logarithms of each channel's activations over its weights, both root mean squares, their mean zero."""
        activations = torch.stack([self._energies[name] for name in site.readers]).mean(dim=0)
        weights = [torch.from_numpy(get_weight(self._modules[name])).square().mean(dim=0) for name in site.readers]
        energy = torch.stack([activations, torch.stack(weights).mean(dim=0).to(activations.device)])
        if site.columns is not None:
            where = torch.from_numpy(site.columns).to(energy.device)
            energy = energy.new_zeros(2, int(where.max()) + 1).index_add_(1, where, energy)
        known = (energy > 0).all(dim=0)
        logs = torch.where(known, (energy[0] / energy[1].clamp_min(1e-30)).clamp_min(1e-30).log() / 2, 0.0)
        mean = logs.sum() / known.sum().clamp_min(1)
        return torch.where(known, logs - mean, 0.0).clamp(-np.log(_MOST), np.log(_MOST))

    def _parameters(self) -> list[nn.Parameter]:
        return [*(s.logs for s in self._smoothing), *(layer.clipping for layer in self._layers.values())]

    def _mean(self, objective: Objective, sequences: range) -> float:
        """The mean loss over some sequences."""

        def one(i: int) -> float:
            with torch.no_grad():
                return float(objective(i))

        self._hold(list[torch.Tensor]())
        return sum(each(one, sequences, self._device)) / len(sequences)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._energies.values())).device

    def _hold(self, weights: list[torch.Tensor]) -> None:
        """Let the layers compute with these weights; none: with those that they have now."""
        if not weights:
            with torch.no_grad():
                weights = [layer.rounded() for layer in self._layers.values()]
        for layer, weight in zip(self._layers.values(), weights):
            layer.current = weight

    def _train(self, objective: Objective, sequences: int, settings: QuantizeSettings) -> None:
        """settings.block_steps steps of AdamW; a step's sequences depend on the seed and the step alone."""
        smoothing = [s.logs for s in self._smoothing]
        clipping = [layer.clipping for layer in self._layers.values()]
        groups = ((smoothing, _SMOOTHING_RATE), (clipping, _CLIPPING_RATE))
        optimizer = torch.optim.AdamW([{"params": p, "lr": rate} for p, rate in groups if p], weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(settings.block_steps):
            count = min(settings.tune_batch, sequences)
            chosen = np.random.default_rng((settings.seed, step)).choice(sequences, size=count, replace=False)
            weights = [layer.rounded() for layer in self._layers.values()]
            leaves = [weight.detach().requires_grad_() for weight in weights]
            self._hold(leaves)
            inputs = [*smoothing, *leaves]

            def one(i: int, inputs: list[torch.Tensor] = inputs, count: int = count) -> tuple[torch.Tensor, ...]:
                with torch.enable_grad():
                    return torch.autograd.grad(objective(i) / count, inputs, materialize_grads=True)

            sums = list[torch.Tensor]()
            for gradients in each(one, np.sort(chosen).tolist(), self._device):  # in their order: the same bits again
                sums = [a + b for a, b in zip(sums, gradients)] if sums else list(gradients)
            own = torch.autograd.grad(weights, [*smoothing, *clipping], sums[len(smoothing) :])
            for i, (parameter, gradient) in enumerate(zip([*smoothing, *clipping], own)):
                parameter.grad = gradient + sums[i] if i < len(smoothing) else gradient
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * (1.0 - step / settings.block_steps)
            optimizer.step()
            with torch.no_grad():
                for logs in smoothing:
                    logs.clamp_(-np.log(_MOST), np.log(_MOST))
