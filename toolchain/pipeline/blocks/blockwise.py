"""Quantizes one transformer block after another and writes each block's shard as soon as it is done.

Calibration states pass through the blocks that are already quantized; finished blocks of an earlier run are replayed
from their shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.artefacts.checkpoint import block_shard
from export.artefacts.records import POOLED
from export.artefacts.stored_matrix import StoredMatrix
from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner, get_weight, set_weight
from toolchain.calibrate.drift import input_moments, reading_order, source_inputs
from toolchain.calibrate.finished import FinishedParts
from toolchain.calibrate.gradients import Gradients, row_weights, token_weights
from toolchain.calibrate.routing import expert_groups, expert_number, expert_tokens, pooled_hessians, too_few
from toolchain.pipeline.blocks.apart import apart
from toolchain.pipeline.blocks.plan import Plan
from toolchain.pipeline.blocks.shard import replay, write_block
from toolchain.pipeline.blocks.units import with_units
from toolchain.quantize import quantizer
from toolchain.quantize.addons.columns import with_columns
from toolchain.quantize.addons.outliers import with_outliers
from toolchain.settings.calibration import Workers
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import ABQ, GRADIENT_METHODS
from toolchain.system.progress import Reporter
from toolchain.system.workers import solve_all

_NAMED = 8  # experts that a line lists before it only counts them


class BlockQuantizer:
    """The block loop of one run; what it writes depends on its arguments and the tokens alone."""

    def __init__(
        self,
        runner: BlockRunner,
        spec: ModelSpec,
        settings: QuantizeSettings,
        gradients: Gradients | None,
        plan: Plan,
        workers: Workers = Workers(),  # noqa: B008 (frozen)
    ) -> None:
        """plan: widths where they differ from the settings'."""
        self._workers = workers
        self._runner, self._spec, self._settings = runner, spec, settings
        self._gradients, self._plan = gradients, plan
        self._stacked = {
            spec.block_name(i) + name for i in range(spec.blocks) for own in spec.names(i).by_expert() for name in own
        }
        self._quantizer = quantizer(settings, runner.device)
        # a block that several layers use has no one input that its quantized form could follow
        follows = settings.asymmetric or settings.method == ABQ
        self._follows = follows and all(spec.uses(i) == 1 for i in range(spec.blocks))

    def run(self, tokens: np.ndarray, out: Path, quiet: bool) -> None:
        """Write the missing block shards into `out`; tokens int64 [sequences, length]."""
        pending = [i for i in range(self._spec.blocks) if not (out / block_shard(i)).exists()]
        with Reporter("Quantizing", len(self._spec.quantizable()), quiet) as report:
            if pending[0] > 0:
                report.note(f"Resuming at block {pending[0]} of {self._spec.blocks}")
            hidden = wanted = self._runner.embed(tokens)  # wanted: what the source computes
            for number in range(pending[-1] + 1):
                block, path = self._runner.load_block(number), out / block_shard(number)
                source = self._runner.load_block(number) if self._follows else None
                self._round_inputs(block, number)
                outputs: torch.Tensor | None = None
                followed: torch.Tensor | None = None
                with FinishedParts(self._runner, block, self._spec.names(number).linears(), hidden) as finished:
                    if path.exists():
                        replay(block, path, self._spec.block_name(number), self._spec.names(number).linears())
                        report.step(f"block {number + 1} replayed", len(self._spec.names(number).linears()))
                    else:
                        inputs = hidden, wanted
                        outputs, followed = self._make(block, source, number, inputs, path, finished, report)
                    if number == pending[-1]:
                        break
                    if source is not None:
                        wanted = self._runner.run(source, wanted) if followed is None else followed
                    if outputs is not None:
                        hidden = outputs
                        continue
                    for _ in range(self._spec.uses(number)):
                        hidden = self._runner.run(block, hidden)

    def _make(
        self, block: nn.Module, source: nn.Module | None, number: int, hidden: tuple[torch.Tensor, torch.Tensor],
        path: Path, finished: FinishedParts, report: Reporter,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
        """Quantize a block in place and write its shard; its outputs and the source's where they are known already.

        source: the same block as it was, which is to be followed; hidden: the inputs of both; finished: of the block.
        """
        targets: torch.Tensor | None = None
        if source is not None and self._settings.method == ABQ:
            results, targets = self._calibrated((block, source), number, hidden, report)
        elif source is not None:
            results, targets = self._follow((block, source), number, hidden, finished, report)
        else:
            hessians, targets = self._hessians(block, number, hidden[0])
            weights = self._weights(block, self._spec.names(number).everyones())
            results = self._quantize(block, number, weights, hessians, report)
        results |= self._experts(block, number, hidden[0], report)
        if self._settings.block_steps and self._settings.method != ABQ:
            results = self._tuned(block, number, results, hidden[0], targets, report)
        results, vectors, outputs = with_units(
            self._runner, self._spec.names(number), block, hidden[0], results, self._settings
        )
        write_block(path, self._spec.block_name(number), results, vectors)
        return outputs, targets if source is not None else None

    def _hessians(
        self, block: nn.Module, number: int, hidden: torch.Tensor
    ) -> tuple[dict[str, np.ndarray], torch.Tensor | None]:
        """Hessians of the block's linear layers; where several layers use it, the mean over all of them.

        Also the block's outputs where it is tuned on them; else dropping them saves one set of states.
        """
        names, uses = self._spec.names(number).everyones(), self._spec.uses(number)
        if uses == 1:
            hessians, outputs = self._runner.hessians(block, names, hidden, self._guide(number))
            return hessians, outputs if self._settings.block_steps else None
        sums: dict[str, np.ndarray] = {}
        for _ in range(uses):
            found, hidden = self._runner.hessians(block, names, hidden)
            sums = {name: sums.get(name, 0.0) + found[name] / uses for name in names}
        return sums, None

    def _experts(
        self, block: nn.Module, number: int, hidden: torch.Tensor, report: Reporter
    ) -> dict[str, StoredMatrix]:
        """Quantize the experts of a block in place, whose other layers are quantized: the results by name.

        They keep to their own outputs, whether the other layers follow the source or not: the tokens that the two
        models' routers send to an expert are not the same.
        """
        own, results = self._spec.names(number), dict[str, StoredMatrix]()
        if own.experts is None:
            return results
        tokens = expert_tokens(self._runner, block, hidden)
        few = too_few(own, block, tokens)
        pooled = pooled_hessians(self._runner, own, block, hidden) if few else {}
        guide = self._guide(number)
        for names in expert_groups(own, block, self._settings.guided_groups):
            hessians, _ = self._runner.hessians(block, names, hidden, guide)
            hessians |= {name: pooled[few[name]] for name in names if name in few}
            results |= self._quantize(block, number, self._weights(block, names), hessians, report)
        for name in few:
            losses = {**results[name].losses, POOLED: float(tokens[expert_number(own, name)])}
            results[name] = replace(results[name], losses=losses)
        if few:
            experts = sorted({expert_number(own, name) for name in few})
            report.note(f"block {number + 1}: few tokens reached experts {_some(experts)}: they share a pooled Hessian")
        return results

    def _guide(self, number: int) -> dict[str, np.ndarray] | None:
        """Token weights of the block's Hessians, when the run is guided."""
        if self._gradients is None or not self._settings.guided:
            return None
        prefix = self._spec.block_name(number)
        found = self._gradients.outputs
        outputs = {name: token_weights(found[prefix + name]) for name in self._spec.names(number).linears()}
        return {name: o if self._settings.guided_groups > 1 else o[0] for name, o in outputs.items()}

    def _follow(
        self, blocks: tuple[nn.Module, nn.Module], number: int, hidden: tuple[torch.Tensor, torch.Tensor],
        finished: FinishedParts, report: Reporter,
    ) -> tuple[dict[str, StoredMatrix], torch.Tensor]:  # fmt: skip
        """Quantize the first block's linear layers in place so that it follows the second, the source's, on its inputs.

        Layer after layer, as they are computed (toolchain/calibrate/drift.py); hidden: the inputs of both. Also the
        outputs of the source's.
        """
        names, results = self._spec.names(number).everyones(), dict[str, StoredMatrix]()
        token_weights = self._guide(number)
        parts = reading_order(self._runner, blocks[1], names, hidden[1])
        inputs, outputs = source_inputs(self._runner, blocks[1], parts, hidden[1])
        for part in parts:
            known = None if inputs is None else inputs.pop(part[0])
            moments = input_moments(self._runner, blocks, part, hidden, token_weights, known)
            weights = {name: moments[name].target(w) for name, w in self._weights(blocks[0], part).items()}
            hessians = {name: moments[name].hessian for name in part}
            del moments  # with as many numbers of drift
            results |= self._quantize(blocks[0], number, weights, hessians, report)
            finished.quantized(part)
        if self._settings.block_steps or self._settings.razor.activation_bits or self._settings.razor.kv:
            finished.forget()  # the block changes once more, or is looked into
        return {name: results[name] for name in names}, outputs

    def _round_inputs(self, block: nn.Module, number: int) -> None:
        """Let a block whose calibration knows of integer activations compute with them."""
        if self._settings.method == ABQ:
            from toolchain.tune.calibration import round_inputs

            round_inputs(block, self._spec.names(number).linears(), self._settings.razor.activation_bits)

    def _calibrated(
        self, blocks: tuple[nn.Module, nn.Module], number: int, hidden: tuple[torch.Tensor, torch.Tensor],
        report: Reporter,
    ) -> tuple[dict[str, StoredMatrix], torch.Tensor]:  # fmt: skip
        """Calibrate and quantize the first block in place, on the second, the source's: also that one's outputs."""
        from toolchain.tune.calibration import calibrated_block

        results, outputs, found = calibrated_block(self._runner, self._settings, blocks, number, hidden)
        report.note(f"block {number + 1}: loss {found.before:.3g}, calibrated {found.after:.3g}")
        for name in results:
            report.step(f"block {number + 1}/{self._spec.blocks} {name}")
        return results, outputs

    def _weights(self, block: nn.Module, names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: get_weight(block.get_submodule(name)) for name in names}

    def _quantize(
        self, block: nn.Module, number: int, weights: Mapping[str, np.ndarray], hessians: Mapping[str, np.ndarray],
        report: Reporter,
    ) -> dict[str, StoredMatrix]:  # fmt: skip
        """Quantize linear layers of the block in place, from these weights; the results by name."""
        prefix, names = self._spec.block_name(number), list(weights)
        results: dict[str, StoredMatrix] = {}
        jobs = [self._job(prefix + name, weights[name], hessians[name]) for name in names]
        for name, result in zip(names, solve_all(_call, jobs, self._workers)):
            damping = result.losses.get("damping")
            if damping is not None:
                report.note(f"{prefix + name}: Hessian is singular, damping raised to {damping:g} of its mean diagonal")
            set_weight(block.get_submodule(name), result.dequantized())
            results[name] = result
            report.step(f"block {number + 1}/{self._spec.blocks} {name}")
        return results

    def _tuned(
        self, block: nn.Module, number: int, results: dict[str, StoredMatrix], hidden: torch.Tensor,
        targets: torch.Tensor | None, report: Reporter,
    ) -> dict[str, StoredMatrix]:  # fmt: skip
        """The results after tuning the quantized block, in place, on its own output error."""
        if targets is None:
            report.note(f"block {number + 1}: several layers share it, so it is not tuned")
            return results
        from toolchain.pipeline.blocks.tuning import tuned

        found, before, after = tuned(self._runner, block, results, hidden, targets, self._settings)
        report.note(f"block {number + 1}: output error {before:.3g}, tuned {after:.3g}")
        return found

    def _job(self, full: str, weights: np.ndarray, hessian: np.ndarray) -> tuple[Any, ...]:
        """A function that quantizes one layer, and its arguments."""
        settings = self._settings.at_width(self._plan.widths.get(full, self._settings.width))
        if full in self._stacked:
            settings = apart(settings, *weights.shape)
        squares = self._gradients.weights.get(full) if self._gradients is not None else None
        extra = (squares,) if squares is not None and settings.method in GRADIENT_METHODS else ()
        quantizer = self._quantizer
        if settings.guided and settings.uses_trellis and self._gradients is not None and full in self._gradients.rows:
            quantizer = partial(quantizer, row_weights=row_weights(self._gradients.rows[full]))
        if settings.columns_apart and full not in self._stacked and hessian.ndim == 2:
            most = None if self._plan.columns is None else self._plan.columns.get(full, 0)
            return (partial(with_columns, quantizer, most), weights, hessian, settings, *extra)
        if not settings.outliers:
            return (quantizer, weights, hessian, settings, *extra)
        return (partial(with_outliers, quantizer), weights, hessian, settings, squares, extra)


def _some(numbers: list[int]) -> str:
    more = len(numbers) - _NAMED
    return ", ".join(map(str, numbers[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _call(function: Callable[..., StoredMatrix], *arguments: Any) -> StoredMatrix:
    return function(*arguments)
