"""What lies outside the transformer blocks: embedding, positions, final norm and head, stored in one shard."""

from __future__ import annotations

import numpy as np

from export.artefacts.records import TensorRecord
from export.graph.spec import ModelSpec
from toolchain.quantize.keep import group_matrix
from toolchain.quantize.methods import rtn
from toolchain.quantize.packed import weight_dtype
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import KEEP
from toolchain.source.checkpoint import SourceModel


def outside_tensors(
    source: SourceModel, spec: ModelSpec, settings: QuantizeSettings
) -> tuple[dict[str, np.ndarray], list[TensorRecord]]:
    """Matrices as uniform codes with a scale per row or as float16, vectors as float32; tensors and their records.

    With `--method keep` matrices that the source has as codes with group scales stay such.
    """
    tensors: dict[str, np.ndarray] = {}
    records: list[TensorRecord] = []
    for name, shape in spec.outside().items():
        hidden_rows = spec.position_offset if name == spec.position_embedding else 0
        weights = source.tensor(f"{name}.weight", (shape[0] + hidden_rows, shape[1])).numpy()[hidden_rows:]
        kept = group_matrix(source, name, weights, hidden_rows) if settings.method == KEEP else None
        if kept is not None:
            parts, record = kept.stored(name)
        elif settings.embedding_bits <= 8:
            result = rtn.quantize(weights, None, QuantizeSettings(method="rtn", bits=settings.embedding_bits))
            parts, record = result.stored(name)
        else:
            dtype = weight_dtype(weights)
            parts = {f"{name}.weight": weights.astype(dtype)}
            record = TensorRecord(name, np.dtype(dtype).name, shape, parts[f"{name}.weight"].nbytes)
        tensors |= parts
        records.append(record)
    for name, size in spec.outside_floats().items():
        tensors[name], record = dense_record(name, source.tensor(name, size).numpy())
        records.append(record)
    return tensors, records


def dense_record(name: str, values: np.ndarray) -> tuple[np.ndarray, TensorRecord]:
    """A vector as it is stored, float32, and its record."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    return array, TensorRecord(name, "float32", array.shape, array.nbytes)
