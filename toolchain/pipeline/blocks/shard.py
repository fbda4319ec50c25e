"""What is stored of a block, into its shard and back into the block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from export.artefacts.checkpoint import read_shard_records, write_shard
from export.artefacts.records import TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from toolchain.calibrate.blocks import set_weight


def write_block(
    path: Path, prefix: str, results: Mapping[str, StoredMatrix], vectors: Mapping[str, np.ndarray]
) -> None:
    """The shard of a block with these matrices and vectors; prefix: of their names."""
    tensors: dict[str, np.ndarray] = {}
    records: list[TensorRecord] = []
    for name, result in results.items():
        parts, record = result.stored(prefix + name)
        tensors |= parts
        records.append(record)
    for name, values in vectors.items():
        tensors[prefix + name], record = dense_record(prefix + name, values)
        records.append(record)
    write_shard(path, tensors, records)


def replay(block: nn.Module, path: Path, prefix: str, linears: Collection[str]) -> None:
    """Put the dequantized weights of a finished shard into the block."""
    tensors = load_file(path)
    records = {record.name: record for record in read_shard_records(path)}
    for name in linears:
        stored = StoredMatrix.restored(records[prefix + name], partial(_part, tensors, prefix + name))
        set_weight(block.get_submodule(name), stored.dequantized())
    for name, parameter in other_parameters(block, linears):  # tuned ones differ from the source's
        parameter.data.copy_(torch.from_numpy(tensors[prefix + name]))


def other_parameters(block: nn.Module, linears: Collection[str]) -> list[tuple[str, nn.Parameter]]:
    """Norms, biases, and what else stays as it is."""
    weights = {f"{name}.weight" for name in linears}
    return [(name, p) for name, p in block.named_parameters() if name not in weights]


def dense_record(name: str, values: np.ndarray) -> tuple[np.ndarray, TensorRecord]:
    """A vector as it is stored, float32, and its record."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    return array, TensorRecord(name, "float32", array.shape, array.nbytes)


def _part(tensors: Mapping[str, np.ndarray], name: str, suffix: str) -> np.ndarray | None:
    return tensors.get(name + suffix)
