"""What lies outside the transformer blocks: embedding, positions, final norm and head, stored in one shard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.records import TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats import CodebookLayout
from export.graph.spec import ModelSpec
from toolchain.pipeline.blocks.shard import dense_record
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
        bits = bits_of(name, spec, settings)
        if bits <= 8 and settings.method != KEEP and not hidden_rows:
            parts, record = _in_pieces(source, name, shape, bits).stored(name)
            tensors |= parts
            records.append(record)
            continue
        weights = source.tensor(f"{name}.weight", (shape[0] + hidden_rows, shape[1])).numpy()[hidden_rows:]
        kept = group_matrix(source, name, weights, hidden_rows) if settings.method == KEEP else None
        if kept is not None:
            parts, record = kept.stored(name)
        elif bits <= 8:
            result = rtn.quantize(weights, None, QuantizeSettings(method="rtn", bits=bits))
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


def bits_of(name: str, spec: ModelSpec, settings: QuantizeSettings) -> int:
    """Bits of a matrix outside the blocks; 16 for float16."""
    own = spec.per_layer is not None and name == spec.per_layer.embedding
    return settings.per_layer_bits if own else settings.embedding_bits


def _in_pieces(source: SourceModel, name: str, shape: tuple[int, int], bits: int) -> StoredMatrix:
    """The matrix with a scale of each row, in pieces of rows: embeddings for layers are larger than all blocks."""
    settings = QuantizeSettings(method="rtn", bits=bits)
    found = [rtn.quantize(piece.numpy(), None, settings) for _, piece in source.row_pieces(f"{name}.weight", shape)]
    if len(found) == 1:
        return found[0]
    layout = found[0].layout
    assert isinstance(layout, CodebookLayout)
    parts = {
        "codes": np.concatenate([piece["codes"] for piece in found]),
        "codebook": found[0]["codebook"],
        "scale": np.concatenate([piece["scale"] for piece in found]),  # float32 where a piece needs it
    }
    return StoredMatrix(replace(layout, N=shape[0], rows_per_codebook=shape[0]), parts)
