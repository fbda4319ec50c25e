"""A matrix of vector codes: how methods make it, how it is stored and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from export.checkpoint import VECTORS, TensorRecord
from export.packing import pack
from export.vectors import VectorLayout, dequantize
from toolchain.quantize import vector_solver
from toolchain.quantize.hessian import damped, layer_loss
from toolchain.quantize.result import QuantizedMatrix, code_scales, scale_dtype
from toolchain.quantize.settings import QuantizeSettings

_CODED_SCALE_BITS = 4
_ROOM = 0.125  # bits per weight that the one codebook of a small matrix may take; the large ones make up for it
_OVERHEAD = 0.06  # bits per weight of scales and codebooks up to which a large matrix gets several
_FLOAT_SCALE_COLUMNS = 1024  # as in athena.py: from this row length on a float16 scale costs little


@dataclass(frozen=True)
class VectorMatrix:
    """One matrix [N, K] in the form of export/vectors.py."""

    layout: VectorLayout
    codes: np.ndarray  # packed, uint8 [N, books, row_bytes]
    codebook: np.ndarray  # int8 [chunks, books, 2**bits, dimension]
    scale: np.ndarray  # float16 or float32 [N, 1]
    coded_scale: QuantizedMatrix | None = None  # the scales as codes: [1, N], `scale` is its value
    losses: dict[str, float] = field(default_factory=dict)  # relative layer loss after each step

    def dequantized(self) -> np.ndarray:
        """The float32 [N, K] matrix that is stored."""
        return dequantize(self.layout, self.codes, self.codebook, self.scale)

    def stored(self, name: str) -> tuple[dict[str, np.ndarray], TensorRecord]:
        """Tensors by checkpoint name, and the record that counts every byte of them."""
        tensors = {f"{name}.codes": self.codes, f"{name}.codebook": self.codebook}
        if self.coded_scale is None:
            tensors[f"{name}.scale"] = self.scale
        else:
            tensors |= self.coded_scale.stored(f"{name}.scale")[0]
        record = TensorRecord(
            name=name,
            scheme=VECTORS,
            shape=(self.layout.N, self.layout.K),
            bytes=sum(array.nbytes for array in tensors.values()),
            bits=self.layout.bits,
            rows_per_codebook=self.layout.rows_per_codebook,
            rows_per_scale=self.layout.rows_per_scale,
            scale_dtype=(self.scale if self.coded_scale is None else self.coded_scale.scale).dtype.name,
            scale_bits=None if self.coded_scale is None else self.coded_scale.layout.bits,
            dimension=self.layout.dimension,
            books=self.layout.books,
            losses=self.losses,
        )
        return tensors, record

    @staticmethod
    def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> VectorMatrix:
        """Rebuild from a record and its stored parts; tensor(suffix) gives a part, None where there is none."""
        coded = None
        if record.scale_bits is not None:
            codes, codebook, unit = (tensor(f".scale.{part}") for part in ("codes", "codebook", "scale"))
            assert codes is not None and codebook is not None and unit is not None
            coded = QuantizedMatrix(record.scale_layout(), codes, codebook, unit)
        scale = tensor(".scale") if coded is None else np.ascontiguousarray(coded.dequantized().T)
        packed, book = tensor(".codes"), tensor(".codebook")
        assert packed is not None and book is not None and scale is not None
        return VectorMatrix(record.vector_layout(), packed, book, scale, coded, record.losses)


def choose_dimension(rows: int, columns: int, settings: QuantizeSettings) -> int:
    """Weights that one code of a matrix [rows, columns] stands for: as asked, or at 2 bits the most within _ROOM.

    Measured layer losses against scalar codes at equal bits: scribe-6M at 2 bits 0.37 to 0.83 with four weights, at 3
    and 4 bits 0.65 to 1.02 with two; stories260K, whose matrices only have room for two, 0.86 to 0.95 at 2 bits. From
    3 bits on scalars stay the automatic choice: they gain less and lose the memory and speed of codes under 8 bits.
    """
    plain = settings.group_size or settings.rank or settings.razor.activation_bits or settings.razor.razor_codebook
    if settings.vector or plain or settings.width > 2:
        return settings.vector or 1
    for dimension in (4, 2):
        bits = settings.width * dimension
        if bits <= 8 and 8 * (dimension << bits) <= _ROOM * rows * columns:
            return dimension
    return 1


def quantize_vectors(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, dimension: int, bits: int, books: int
) -> VectorMatrix:
    """Quantize weights [N, K] to codes of `bits` bits for `dimension` weights, `books` of them added up."""
    w = np.ascontiguousarray(weights, dtype=np.float64)
    rows, columns = w.shape
    h, used_damping = damped(hessian, settings.damping)
    w, h = vector_solver.padded(w, h, dimension)
    scale_bits = settings.scale_bits or (_CODED_SCALE_BITS if columns < _FLOAT_SCALE_COLUMNS else 16)
    shared = settings.rows_per_codebook or _shared_rows(rows, columns, scale_bits, books * dimension << bits)
    layout = VectorLayout(bits, columns, rows, dimension, books, min(shared, rows))
    rng = np.random.default_rng(settings.seed)
    total = max(layer_loss(w, h), 1e-300)
    parts = [
        slice(first, min(first + layout.rows_per_codebook, rows)) for first in range(0, rows, layout.rows_per_codebook)
    ]
    states, losses = [], {"clustering": 0.0, "sweep": 0.0, "refinement": 0.0}
    for part in parts:
        state, found = vector_solver.solve(w[part], h, dimension, bits, books, settings.passes, rng)
        states.append(state)
        losses = {name: losses[name] + loss for name, loss in found.items()}
    scale = np.concatenate([state.scale for state in states])[:, None]
    coded, name = None, "stored_scales"
    if scale_bits < 16:
        coded, name = code_scales(scale, scale_bits), "coded_scales"
        scale = np.ascontiguousarray(coded.dequantized().T)
    else:
        scale = scale.astype(scale_dtype(float(scale.min()), float(scale.max())))
    losses[name] = 0.0
    for i, (part, state) in enumerate(zip(parts, states)):
        state.scale = scale[part, 0].astype(np.float64)
        loss = layer_loss(w[part] - state.weights(), h)
        passes = settings.passes // 2 + 1 if coded else 0
        states[i], loss = vector_solver.refined(w[part], h, state, loss, passes, fixed_scale=True)
        losses[name] += loss
    codes = np.concatenate([state.codes for state in states]).astype(np.uint8)
    packed = pack(codes.reshape(rows * books, -1), bits).reshape(rows, books, -1)
    record = {step: float(loss / total) for step, loss in losses.items()}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    book = np.stack([state.book for state in states]).astype(np.int8)
    return VectorMatrix(layout, packed, book, scale, coded, record)


def _shared_rows(rows: int, columns: int, scale_bits: int, entries: int) -> int:
    """Rows that share codebooks of `entries` int8 numbers: the fewest (a power of two) within _OVERHEAD."""
    room, shared = _OVERHEAD - scale_bits / columns, 1
    while shared < rows and 8 * entries / (shared * columns) > room:
        shared *= 2
    return shared
