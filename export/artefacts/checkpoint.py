"""The quantized checkpoint on disk: written by toolchain, read by the graph builder.

A folder holds the source's config.json with every field, its tokenizer files as they came, `athena.json`, and one
safetensors shard per transformer block plus one for what lies outside the blocks. A shard is written to a temporary
file and renamed, and carries the records of its tensors in its own metadata, so that a shard that exists is complete.

Tensor names are Hugging Face module names with a suffix: `.codes`, `.codebook`, `.scale` for codebook matrices
(`.scale.codes`, `.scale.codebook`, `.scale.scale` when the scales are coded themselves), `.lowrank_a` [r, K] and
`.lowrank_b` [N, r] for a residual W ~ codebook + b @ a, `.outlier_gaps` and `.outlier_values` [n] for weights stored
apart, `.flags` beside codes, codebook and scale for razored matrices (vector codes are [N, books, bytes], their
codebooks [chunks, books, entries, dimension]; trellis codebooks [chunks, states]), `.weight` and `.bias` for the rest.
`.input_unit` [1] of a layer, `key_unit` and `value_unit` ([1] or [kv_heads]) of a block say what one step of integer
activations and cached integers is worth.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from export.artefacts.manifest import read_manifest
from export.contract.errors import InputError
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.trellis import STANDARD_STATE_BITS, TrellisLayout
from export.contract.formats.vectors import VectorLayout
from export.contract.operators.integers import IntegerLayout
from export.files.access import MANIFEST, checked_path, read_json, replacing

FORMAT_VERSION = 1
RAZORED = "razored"  # scheme of matrices of SDR codes
VECTORS = "vectors"  # scheme of matrices whose codes stand for several neighbouring weights
TRELLIS = "trellis"  # scheme of matrices whose levels depend on the codes of several rows
COMPACT = (VECTORS, TRELLIS)
OUTSIDE_SHARD = "outside.safetensors"
_MAX_LAYERS = 10_000


@dataclass(frozen=True)
class TensorRecord:
    """What is known about one stored matrix or vector."""

    name: str  # Hugging Face module name, e.g. model.layers.0.self_attn.q_proj, or a full tensor name for vectors
    scheme: str  # "codebook", "razored", "vectors", "trellis" or the dtype name of a dense tensor
    shape: tuple[int, ...]  # of the logical tensor
    bytes: int  # all stored parts together
    bits: int | None = None  # code width; None for dense tensors
    group_size: int = 0
    rows_per_codebook: int = 1
    rows_per_scale: int = 1
    rank: int = 0
    scale_dtype: str = "float16"  # of the scales, or of their unit when coded; float32 where float16 is too narrow
    scale_bits: int | None = None  # code width when the scales are stored as a codebook matrix [G, N]
    rotation: int = 1  # columns that one Hadamard matrix mixes; 1: none (razored matrices only)
    dimension: int = 1  # neighbouring weights that one code stands for (vectors only)
    books: int = 1  # codebooks that add up (vectors only)
    state_bits: int = 0  # bits that pick a level (trellis only)
    standard_levels: bool = (
        False  # the codebook is export.contract.formats.trellis.standard_levels, stored once for the model
    )
    outliers: int = 0  # weights stored apart (export/contract/sparse.py)
    outlier_dtype: str = "float16"
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step of the quantizer

    @property
    def effective_bits(self) -> float:
        """Everything stored for the tensor, in bits per weight."""
        return 8 * self.bytes / max(1, int(np.prod(self.shape)))

    def layout(self) -> CodebookLayout:
        rows, columns = self.shape
        return CodebookLayout(
            bits=self.bits or 0,
            K=columns,
            N=rows,
            group_size=self.group_size,
            rows_per_codebook=self.rows_per_codebook,
            rows_per_scale=self.rows_per_scale,
        )

    def vector_layout(self) -> VectorLayout:
        rows, columns = self.shape
        return VectorLayout(
            bits=self.bits or 0,
            K=columns,
            N=rows,
            dimension=self.dimension,
            books=self.books,
            rows_per_codebook=self.rows_per_codebook,
            rows_per_scale=self.rows_per_scale,
        )

    def trellis_layout(self) -> TrellisLayout:
        rows, columns = self.shape
        return TrellisLayout(
            bits=self.bits or 0,
            K=columns,
            N=rows,
            state_bits=self.state_bits,
            rows_per_codebook=self.rows_per_codebook,
            rows_per_scale=self.rows_per_scale,
        )

    def compact_layout(self) -> VectorLayout | TrellisLayout:
        """Layout of a matrix of vector or trellis codes."""
        return self.trellis_layout() if self.scheme == TRELLIS else self.vector_layout()

    def integer_layout(self, group_size: int) -> IntegerLayout:
        """Layout as a factor of integer products whose codes share flags in groups of this size."""
        rows, columns = self.shape
        per_scale = 1 if self.scheme == RAZORED else self.rows_per_scale
        return IntegerLayout(self.bits or 0, columns, rows, group_size, self.rows_per_codebook, per_scale)

    def scale_layout(self) -> CodebookLayout:
        """Layout of the coded scales: the transposed scale matrix [G, N] with one codebook and one unit."""
        layout = self.layout()
        groups = layout.groups
        return CodebookLayout(self.scale_bits or 0, layout.scale_shape[0], groups, 0, groups, groups)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape), "effective_bits": round(self.effective_bits, 6)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> TensorRecord:
        """Raises TypeError or ValueError when the data is not a record."""
        fields = {key: value for key, value in data.items() if key != "effective_bits"}
        record = TensorRecord(**{**fields, "shape": tuple(fields["shape"])})
        numbers = (
            *record.shape,
            record.bytes,
            record.group_size,
            record.rank,
            record.bits or 0,
            record.scale_bits or 0,
            record.rotation,
            record.dimension,
            record.books,
            record.state_bits,
            record.outliers,
        )
        if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or not isinstance(record.name, str):
            raise ValueError(f"the record of {record.name!r} holds impossible numbers")
        if type(record.standard_levels) is not bool or (record.standard_levels and record.scheme != TRELLIS):
            raise ValueError(f"the record of {record.name!r} has impossible standard_levels")
        if record.scheme == "codebook":
            record.layout()
        elif record.scheme == RAZORED:
            record.integer_layout(record.group_size)
        elif record.scheme in COMPACT:
            layout = record.compact_layout()
            if record.standard_levels and layout.codebook_shape != (1, 1 << STANDARD_STATE_BITS[layout.bits]):
                raise ValueError(f"the standard levels do not fit the record of {record.name!r}")
        return record


def block_shard(layer: int) -> str:
    return f"block-{layer:05d}.safetensors"


def shard_names(layers: int, prefix: str = "") -> list[str]:
    """All shards of a checkpoint with `layers` blocks, in the order they are written."""
    return [prefix + name for name in (*map(block_shard, range(layers)), OUTSIDE_SHARD)]


def write_shard(path: Path, tensors: dict[str, np.ndarray], records: list[TensorRecord]) -> None:
    """Write one shard atomically, with the records of its tensors in the metadata."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"athena": json.dumps([record.to_json() for record in records])}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def read_shard_records(path: Path) -> list[TensorRecord]:
    """Records of one shard. Raises InputError when the file is not a complete shard of ours."""
    try:
        with safe_open(checked_path(path, folder=path.parent), framework="numpy") as file:
            return [TensorRecord.from_json(r) for r in json.loads((file.metadata() or {})["athena"])]
    except InputError:
        raise
    except (SafetensorError, OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a complete shard of a quantized checkpoint ({error})") from None


class StoredTensors(Protocol):
    """What the exporter needs of a quantized checkpoint."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    records: dict[str, TensorRecord]

    def has(self, name: str) -> bool:
        """Whether the tensor or matrix of this name is stored."""

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part of a record, e.g. tensor("model.layers.0.mlp.up_proj", ".codes")."""


class QuantizedCheckpoint:
    """Read access to a complete quantized checkpoint; tensors are read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the manifest or a shard is missing, incomplete or of another format version."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        version = self.manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(f"{folder / MANIFEST}: format_version is {version!r}, this tool reads {FORMAT_VERSION}")
        self.config = read_json(folder / "config.json")
        self.records: dict[str, TensorRecord] = {}
        self._shard_of: dict[str, Path] = {}
        layers, prefix = self.manifest.get("layers"), self.manifest.get("shard_prefix", "")
        if type(layers) is not int or not 1 <= layers <= _MAX_LAYERS:
            raise InputError(
                f"{folder / MANIFEST}: layers must be a whole number from 1 to {_MAX_LAYERS}, not {layers!r}"
            )
        if not isinstance(prefix, str) or Path(f"{prefix}x").name != f"{prefix}x" or "\0" in prefix:
            raise InputError(f"{folder / MANIFEST}: shard_prefix {prefix!r} is not the start of a file name")
        for name in shard_names(layers, prefix):
            path = folder / name
            if not path.exists():
                raise InputError(f"{path}: this shard is missing; run `athena-export quantize` again to finish it")
            for record in read_shard_records(path):
                self.records[record.name] = record
                self._shard_of[record.name] = path

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part of a record, e.g. tensor("model.layers.0.mlp.up_proj", ".codes")."""
        path = self._shard_of[record_name]
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(record_name + suffix)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {record_name}{suffix} cannot be read ({error})") from None
