"""Records: what a quantized checkpoint says about each stored matrix or vector, `{scheme, shape, layout, parts}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.artefacts.former_records import from_former
from export.contract.formats import FORMATS, CodebookLayout, Layout, layout_of
from export.contract.formats.base import FLOATS, Part, layout_from

ARRAY, CODES, STANDARD = "array", "codes", "standard"
LOW_RANK = ("lowrank_a", "lowrank_b")
OUTLIERS = ("outlier_gaps", "outlier_values")
# Beside the losses: the damping of a singular Hessian; the tokens of an expert that has no Hessian of its own.
DAMPING, POOLED = "damping", "pooled_tokens"
_MOST = 2**48


@dataclass(frozen=True)
class StoredPart:
    """How one part of a matrix is stored.

    how: ARRAY, a tensor of its own; STANDARD, nowhere, it is this edition of the format's own table; CODES, as the
    transposed matrix of codes with this layout, in tensors NAME.PART.codes, .codebook and .scale, whose scale has this
    dtype.
    """

    dtype: str
    shape: tuple[int, ...]
    how: str = ARRAY
    layout: Mapping[str, int] = field(default_factory=dict)
    edition: int = 1

    @property
    def bytes(self) -> int:
        """What is stored for it."""
        if self.how == CODES:
            return self.coded_layout().stored_bytes(np.dtype(self.dtype).itemsize)
        return 0 if self.how == STANDARD else np.dtype(self.dtype).itemsize * int(np.prod(self.shape))

    def coded_layout(self) -> CodebookLayout:
        """Of a part stored as CODES."""
        layout = layout_from(CodebookLayout, self.layout)
        assert isinstance(layout, CodebookLayout)
        return layout

    def to_json(self) -> dict[str, Any]:
        own = {"how": self.how} if self.how != ARRAY else {}
        coded = {"layout": dict(self.layout)} if self.layout else {}
        edition = {"edition": self.edition} if self.edition != 1 else {}
        return {"dtype": self.dtype, "shape": list(self.shape), **own, **coded, **edition}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> StoredPart:
        """Raises KeyError, TypeError or ValueError when the data is no such part."""
        part = StoredPart(**{**data, "shape": tuple(data["shape"])})
        numbers = (*part.shape, *part.layout.values(), part.edition)
        names = isinstance(part.dtype, str) and part.how in (ARRAY, CODES, STANDARD)
        if not names or not all(type(n) is int and 0 <= n < _MOST for n in numbers):
            raise ValueError(f"impossible part {dict(data)!r:.200}")
        if part.how == CODES and part.shape != _transposed(part.coded_layout()):
            raise ValueError("the codes of a part do not fit its shape")
        return part


def _transposed(layout: CodebookLayout) -> tuple[int, int]:
    return layout.K, layout.N


@dataclass(frozen=True)
class TensorRecord:
    """What is known about one stored matrix or vector."""

    name: str  # Hugging Face module name, e.g. model.layers.0.self_attn.q_proj, or a full tensor name for vectors
    scheme: str  # a name in FORMATS, or the dtype name of a dense tensor
    shape: tuple[int, ...]  # of the logical tensor
    bytes: int  # all stored parts together
    layout: Mapping[str, int] = field(default_factory=dict)  # attributes of the format; {} for dense tensors
    parts: Mapping[str, StoredPart] = field(default_factory=dict)  # of the format, and what is stored beside them
    losses: Mapping[str, float] = field(default_factory=dict)  # relative layer loss after each step of the quantizer

    @staticmethod
    def of(name: str, layout: Layout, parts: Mapping[str, StoredPart]) -> TensorRecord:
        """The record of a matrix of one of FORMATS."""
        size = sum(part.bytes for part in parts.values())
        return TensorRecord(name, layout.SCHEME, (layout.N, layout.K), size, layout.attributes(), parts)

    @property
    def is_dense(self) -> bool:
        """Whether the numbers are stored as they are."""
        return self.scheme not in FORMATS

    @property
    def bits(self) -> int | None:
        """Code width; None for dense tensors."""
        return self.layout.get("bits")

    @property
    def rank(self) -> int:
        """Of the low-rank term; 0 without one."""
        return self._first_dimension(LOW_RANK[0])

    @property
    def outliers(self) -> int:
        """How many weights are stored apart."""
        return self._first_dimension(OUTLIERS[0])

    def _first_dimension(self, part: str) -> int:
        return self.parts[part].shape[0] if part in self.parts and self.parts[part].shape else 0

    @property
    def effective_bits(self) -> float:
        """Everything stored for the tensor, in bits per weight."""
        return 8 * self.bytes / max(1, int(np.prod(self.shape)))

    def matrix_layout(self) -> Layout:
        """The layout of a matrix in one of FORMATS. Raises KeyError, TypeError or ValueError where it is none."""
        layout = layout_of(self.scheme, self.layout)
        if self.shape != (layout.N, layout.K):
            raise ValueError(f"the layout is {[layout.N, layout.K]}, the record says {list(self.shape)}")
        return layout

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "scheme": self.scheme,
            "shape": list(self.shape),
            "bytes": self.bytes,
            "bits": self.bits,
            "effective_bits": round(self.effective_bits, 6),
            "layout": dict(self.layout),
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "losses": dict(self.losses),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorRecord:
        """A record of any format version. Raises KeyError, TypeError or ValueError when the data is not one."""
        if "parts" not in data:
            data = from_former(data)
        parts = {name: StoredPart.from_json(part) for name, part in data["parts"].items()}
        record = TensorRecord(
            data["name"], data["scheme"], tuple(data["shape"]), data["bytes"], data["layout"], parts, data["losses"]
        )
        numbers = (*record.shape, record.bytes, *record.layout.values())
        if not all(type(n) is int and 0 <= n < _MOST for n in numbers):
            raise ValueError(f"the record of {record.name!r} holds impossible numbers")
        if not isinstance(record.name, str) or not isinstance(record.losses, dict):
            raise ValueError(f"the record of {record.name!r} is malformed")
        if not record.is_dense:
            _check_parts(record)
        elif record.scheme not in FLOATS or record.layout or record.parts:
            raise ValueError(f"the record of {record.name!r} has the unknown scheme {record.scheme!r:.50}")
        return record


def _check_parts(record: TensorRecord) -> None:
    """Raises ValueError when the stored parts are not those of the format."""
    layout = record.matrix_layout()
    for name, wanted in layout.parts().items():
        part = record.parts.get(name)
        dtypes = FLOATS if part is not None and part.how == CODES else wanted.dtypes
        if part is None or part.shape != wanted.shape or part.dtype not in dtypes:
            raise ValueError(f"the record of {record.name!r} has an impossible part {name}")
        if part.how == STANDARD and layout.standard(name, part.edition).shape != part.shape:
            raise ValueError(f"the record of {record.name!r} has no standard {name}")
        if part.how == CODES and not wanted.computed:
            raise ValueError(f"the record of {record.name!r} has coded {name}")
    extra = record.parts.keys() - layout.parts().keys() - {*LOW_RANK, *OUTLIERS}
    if extra:
        raise ValueError(f"the record of {record.name!r} has an unknown part {min(extra)}")
    for pair in (LOW_RANK, OUTLIERS):
        if len(record.parts.keys() & set(pair)) == 1:
            raise ValueError(f"the record of {record.name!r} has one of {' and '.join(pair)}")
    rows, columns = record.shape
    beside = {
        "lowrank_a": Part((record.rank, columns), ("float16",)),
        "lowrank_b": Part((rows, record.rank), ("float16",)),
        "outlier_gaps": Part((record.outliers,), ("uint16",)),
        "outlier_values": Part((record.outliers,), FLOATS),
    }
    for name, wanted in beside.items():
        part = record.parts.get(name)
        if part and (part.shape != wanted.shape or part.how != ARRAY or part.dtype not in wanted.dtypes):
            raise ValueError(f"the record of {record.name!r} has an impossible part {name}")


def standard_bytes(records: list[TensorRecord]) -> int:
    """Bytes of the tables that formats bring along, each counted once for a whole model."""
    tables = {
        (record.scheme, name, part.dtype, part.shape, record.bits, part.edition)
        for record in records
        for name, part in record.parts.items()
        if part.how == STANDARD
    }
    return sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for _, _, dtype, shape, *_ in tables)


def final_loss(losses: Mapping[str, float]) -> float | None:
    """The relative layer loss after the quantizer's last step; None where nothing was solved."""
    steps = [value for name, value in losses.items() if name not in (DAMPING, POOLED)]
    return steps[-1] if steps else None
