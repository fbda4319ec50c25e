"""Units of integer activations and cache, measured on a block whose layers are quantized."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.graph.spec import BlockNames
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.ranges import measure_ranges
from toolchain.pipeline.blocks.channel_groups import calibrated_groups, sorted_rows
from toolchain.pipeline.blocks.shard import other_parameters
from toolchain.settings.preparation import ACTIVATIONS
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import HEAD


def with_units(
    runner: BlockRunner, names: BlockNames, block: nn.Module, hidden: torch.Tensor,
    results: dict[str, StoredMatrix], settings: QuantizeSettings,
) -> tuple[dict[str, StoredMatrix], dict[str, np.ndarray], torch.Tensor | None]:  # fmt: skip
    """The matrices and vectors to store, with the units of integer activations and cache.

    Also the block's outputs, None without integers. hidden: the block's inputs.
    """
    linears, razor = names.linears(), settings.razor
    vectors = {name: parameter.detach().cpu().numpy() for name, parameter in other_parameters(block, linears)}
    if not razor.activation_bits and not razor.kv:
        return results, vectors, None
    ranges, outputs = measure_ranges(runner, block, linears, hidden, settings.rotates(ACTIVATIONS))
    units: dict[str, np.ndarray] = {}
    if razor.activation_groups:
        weights = {name: get_weight(block.get_submodule(name)) for name in linears}
        units = calibrated_groups(ranges, weights, razor.activation_groups, razor.activation_bits)
        results, units, vectors = sorted_rows(names, results, units, vectors)
    elif razor.activation_bits:
        limit = razor.format(razor.activation_basis, razor.activation_bits).limit
        units = {f"{name}.input_unit": _positive(np.array([ranges.inputs[name] / limit])) for name in linears}
    if razor.kv and ranges.keys.size:
        for name, tops in (("key_unit", ranges.keys), ("value_unit", ranges.values)):
            units[name] = _positive((tops if razor.kv_unit == HEAD else tops.max(keepdims=True)) / 127)
    return results, {**vectors, **units}, outputs


def _positive(units: np.ndarray) -> np.ndarray:
    return np.where(units > 0, units, 1.0)
