"""A quantized block tuned on the error of its own output (`--block-steps`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from toolchain.calibrate.blocks import BlockRunner, set_weight
from toolchain.settings.quantize import QuantizeSettings
from toolchain.tune.block import BlockTuneSettings, tune_block
from toolchain.tune.trainable import trainable_layer


def tuned(
    runner: BlockRunner, block: nn.Module, results: Mapping[str, StoredMatrix], hidden: torch.Tensor,
    targets: torch.Tensor, settings: QuantizeSettings,
) -> tuple[dict[str, StoredMatrix], float, float]:  # fmt: skip
    """Tune the block in place: its matrices after that, and the error before and after.

    hidden, targets: float [sequences, length, hidden size], what goes into the block and what should come out.
    """
    modules = {name: block.get_submodule(name) for name in results}
    layers = {name: trainable_layer(module, results[name]) for name, module in modules.items()}
    for name, layer in layers.items():
        block.set_submodule(name, layer)
    tune = BlockTuneSettings(
        settings.block_steps, settings.tune_rate, settings.width, settings.tune_batch, settings.seed
    )
    before, after = tune_block(
        block, lambda states: runner.visible(runner.forward(block, states)), hidden, runner.visible(targets), tune
    )
    found = {name: layer.cpu().to_stored(dict(results[name].losses)) for name, layer in layers.items()}
    for name, module in modules.items():
        block.set_submodule(name, module)
        set_weight(module, found[name].dequantized())
        bias = layers[name].bias
        if bias is not None:
            assert isinstance(module.bias, nn.Parameter)
            module.bias.data.copy_(bias.detach())
    return found, before, after
