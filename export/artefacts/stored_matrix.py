"""One quantized matrix in memory: what methods return, checkpoints store, tuning trains and evaluation reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from export.artefacts.records import ARRAY, CODES, LOW_RANK, OUTLIERS, STANDARD, StoredPart, TensorRecord
from export.contract.formats import CodebookLayout, Layout
from export.contract.sparse import SparseLayout


@dataclass(frozen=True)
class Outliers:
    """Weights of one matrix that are stored apart, in the form of export/contract/sparse.py."""

    gaps: np.ndarray  # uint16 [n]
    values: np.ndarray  # float16 or float32 [n]

    def dense(self, rows: int, columns: int) -> np.ndarray:
        """float32 [rows, columns]."""
        return SparseLayout(columns, rows).dense(self.gaps, self.values)


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix [N, K]: the parts of its format, and what is stored beside them."""

    layout: Layout
    parts: Mapping[str, np.ndarray]  # by name, in the order of layout.parts(); coded ones by their values
    coded: Mapping[str, StoredMatrix] = field(default_factory=dict)  # parts stored as codes: their transposed matrices
    # parts that are the format's own tables, by their edition, and not stored here
    standard: Mapping[str, int] = field(default_factory=dict)
    low_rank: tuple[np.ndarray, np.ndarray] | None = None  # a float16 [r, K] and b float16 [N, r]; adds b @ a
    outliers: Outliers | None = None
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step

    def __getitem__(self, part: str) -> np.ndarray:
        return self.parts[part]

    def codes_alone(self) -> np.ndarray:
        """float32 [N, K] of the format's parts, without what is stored beside them."""
        return self.layout.dequantized(*self.parts.values())

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that is stored, low-rank term and outliers included."""
        weights = self.codes_alone()
        if self.low_rank is not None:
            a, b = self.low_rank
            weights += b.astype(np.float32) @ a.astype(np.float32)
        return weights if self.outliers is None else weights + self.outliers.dense(*weights.shape)

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors: dict[str, np.ndarray] = {}
        parts: dict[str, StoredPart] = {}
        for part, array in self.parts.items():
            how = STANDARD if part in self.standard else CODES if part in self.coded else ARRAY
            if how == ARRAY:
                tensors[f"{name}.{part}"] = array
            dtype, layout = array.dtype.name, {}
            if how == CODES:
                codes = self.coded[part]
                tensors |= codes.stored(f"{name}.{part}")[0]
                dtype, layout = codes["scale"].dtype.name, codes.layout.attributes()
            parts[part] = StoredPart(dtype, array.shape, how, layout, self.standard.get(part, 1))
        for part, array in self._beside().items():
            tensors[f"{name}.{part}"] = array
            parts[part] = StoredPart(array.dtype.name, array.shape)
        shape, size = (self.layout.N, self.layout.K), sum(array.nbytes for array in tensors.values())
        record = TensorRecord(name, self.layout.SCHEME, shape, size, self.layout.attributes(), parts, dict(self.losses))
        return tensors, record

    def _beside(self) -> dict[str, np.ndarray]:
        found = {} if self.low_rank is None else dict(zip(LOW_RANK, self.low_rank))
        return (
            found
            if self.outliers is None
            else {**found, **dict(zip(OUTLIERS, (self.outliers.gaps, self.outliers.values)))}
        )

    @staticmethod
    def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> StoredMatrix:
        """Rebuild from a record and its stored parts; tensor(suffix) gives a part, None where there is none.

        Raises ValueError when a part is missing or does not fit the record.
        """
        layout = record.matrix_layout()
        parts: dict[str, np.ndarray] = {}
        coded: dict[str, StoredMatrix] = {}
        for name in layout.parts():
            stored = record.parts[name]
            if stored.how == STANDARD:
                parts[name] = layout.standard(name, stored.edition)
            elif stored.how == CODES:
                coded[name] = _coded(stored, tensor, name)
                parts[name] = np.ascontiguousarray(coded[name].dequantized().T)
            else:
                parts[name] = _present(tensor, name)
        standard = {name: part.edition for name, part in record.parts.items() if part.how == STANDARD}
        low_rank = tuple(_present(tensor, name) for name in LOW_RANK) if record.rank else None
        outliers = Outliers(*(_present(tensor, name) for name in OUTLIERS)) if record.outliers else None
        return StoredMatrix(layout, parts, coded, standard, low_rank, outliers, dict(record.losses))  # type: ignore[arg-type]


def _coded(stored: StoredPart, tensor: Callable[[str], np.ndarray | None], name: str) -> StoredMatrix:
    layout: CodebookLayout = stored.coded_layout()
    return StoredMatrix(layout, {part: _present(tensor, f"{name}.{part}") for part in layout.parts()})


def _present(tensor: Callable[[str], np.ndarray | None], name: str) -> np.ndarray:
    found = tensor(f".{name}")
    if found is None:
        raise ValueError(f"the part {name} is missing")
    return found
