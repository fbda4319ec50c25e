"""A source that is quantized already, stored as it is (`--method keep`): no calibration, no Hessians, no loss.

Matrices of the blocks that the source holds as plain floats stay floats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.artefacts.checkpoint import block_shard, write_shard
from export.artefacts.records import TensorRecord
from export.contract.errors import InputError
from export.graph.spec import ModelSpec
from runtime_py.system.memory import give_back
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.pipeline.blocks.shard import dense_record
from toolchain.quantize.keep import kept_matrix, narrowest
from toolchain.source.checkpoint import SourceModel
from toolchain.system.progress import Reporter


def keep_blocks(source: SourceModel, spec: ModelSpec, out: Path, quiet: bool) -> None:
    """Write the missing block shards into `out`. Raises InputError naming a tensor that cannot be kept exactly."""
    runner = BlockRunner(source, spec)
    with Reporter("Keeping", len(spec.quantizable()), quiet) as report:
        for number in range(spec.blocks):
            path, prefix, names = out / block_shard(number), spec.block_name(number), spec.names(number).linears()
            if path.exists():
                report.step(f"block {number + 1} found", len(names))
                continue
            block = runner.load_block(number)
            tensors: dict[str, np.ndarray] = {}
            records: list[TensorRecord] = []
            for name in names:
                weights = get_weight(block.get_submodule(name))
                found = kept_matrix(source, prefix + name, weights)
                parts, record = dense_matrix(prefix + name, weights) if found is None else found.stored(prefix + name)
                tensors |= parts
                records.append(record)
                report.step(f"block {number + 1}/{spec.blocks} {name}")
            for name, parameter in block.named_parameters():  # norms and biases
                if name.removesuffix(".weight") not in names:
                    tensors[prefix + name], record = dense_record(prefix + name, parameter.detach().numpy())
                    records.append(record)
            write_shard(path, tensors, records)
    give_back()


def dense_matrix(module: str, weights: np.ndarray) -> tuple[dict[str, np.ndarray], TensorRecord]:
    """A matrix of floats in the narrowest type that holds them exactly, and its record."""
    values = narrowest(weights)
    record = TensorRecord(module, values.dtype.name, values.shape, values.nbytes)
    return {f"{module}.weight": values}, record


def refuse_plain(source: SourceModel) -> None:
    """Raises InputError where there is nothing to keep."""
    if source.stored_as is None:
        raise InputError(
            f"{source.where}: --method keep needs a source whose weights are quantized already; these are plain "
            "floats, which every other --method takes"
        )
