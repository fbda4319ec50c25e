"""CodebookMatMul becomes com.microsoft::MatMulNBits, which onnxruntime computes from the small weights directly.

before  CodebookMatMul(X, codes, codebook, scale)
after   MatMulNBits(X, B, scales[, zero_points])

A codebook whose levels lie evenly around zero becomes 4 bits, exactly: level = step * (code - zero point), scale
step * scale. Zero points must be whole: onnxruntime takes fractional ones, too, but a 1.1-billion model then decoded
0.75 tokens/s where whole ones gave 28. Every other codebook holds int8 levels, so 8 bits hold the weights exactly, too:
B = level + 128. On request those are encoded again with 4 bits and a scale for every 32 columns, which loses
something: the difference of the weights is returned for the report.

Blocks hold 16 columns or more, so codebooks of narrower or odd groups of columns keep the standard form, and so do
the products that are no CodebookMatMul: sparse weights, and integers. (Swept over widths, rows, blocks and accuracy
levels, onnxruntime 1.32 computes 4 and 8 bits rightly, for columns that do not fill their last block, too.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN as ATHENA
from export.contract.formats.base import field_names
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, CodebookLayout, codebook_gather
from export.contract.operators.integers import SDR_MATMUL
from export.contract.packing import unpack
from export.contract.sparse import SPARSE_MATMUL
from export.lowering.stored import Kept, lazy

DOMAIN = "com.microsoft"
_SMALLEST_BLOCK = 16  # columns; what the operator takes
_LOSSY_BLOCK = 32
_ROWS = 1024  # encoded at a time
_ACCURACY_LEVELS = (0, 1, 2, 3, 4)  # unset, float32, float16, bfloat16, int8
_NO_COUNTERPART = {SPARSE_MATMUL: "sparse weights have no counterpart", SDR_MATMUL: "integers have no counterpart"}


@dataclass(frozen=True)
class NBits:
    """How weights are stored."""

    block_size: int = 128  # columns that share a scale, a power of two
    accuracy_level: int = 4  # 4: int8 activations; 0 or 1: float32 ones (slow at 2 and 8 bits)
    reencode: bool = False  # 4 bits for codebooks that are not even: smaller, and not exact

    def __post_init__(self) -> None:
        if self.block_size < _SMALLEST_BLOCK or self.block_size & (self.block_size - 1):
            raise InputError(f"block_size must be a power of two of {_SMALLEST_BLOCK} or more, not {self.block_size}")
        if self.accuracy_level not in _ACCURACY_LEVELS:
            raise InputError(
                f"accuracy_level must be one of {', '.join(map(str, _ACCURACY_LEVELS))}, not {self.accuracy_level}"
            )


@dataclass
class Encoded:
    """What became of one matrix. error: norm of the difference over the norm of the weights, once it was written."""

    name: str
    bits: int
    exact: bool
    error: float = field(default=0.0)


def run(model: ir.Model, settings: NBits) -> tuple[list[Encoded], list[Kept]]:
    """Replace every CodebookMatMul in place that the operator can hold, and say which products stay as they are.

    Weights are encoded when the model is saved, and errors known then.
    """
    graph, found, kept = model.graph, list[Encoded](), list[Kept]()
    for node in [node for node in graph if node.domain == ATHENA]:
        why = _NO_COUNTERPART.get(node.op_type, "")
        if node.op_type == CODEBOOK_MATMUL:
            layout = _layout(node)
            why = _obstacle(layout)
            if not why:
                found.append(_replace(graph, node, layout, settings))
        if why:
            kept.append(Kept(str(node.name), node.op_type, why))
    if found:
        model.opset_imports[DOMAIN] = 1
    return found, kept


def _layout(node: ir.Node) -> CodebookLayout:
    return CodebookLayout(**{name: node.attributes[name].as_int() for name in field_names(CodebookLayout)})


def _obstacle(layout: CodebookLayout) -> str:
    """Why blocks of columns cannot hold the codebooks; empty when they can."""
    if layout.groups == 1 or layout.columns_per_group % _SMALLEST_BLOCK == 0:
        return ""
    return f"groups of {layout.columns_per_group} columns do not fill blocks of {_SMALLEST_BLOCK}"


def _replace(graph: ir.Graph, node: ir.Node, layout: CodebookLayout, settings: NBits) -> Encoded:
    codes, book, scale = (_array(value) for value in node.inputs[1:])
    assert node.name
    even = _even(book) if layout.bits <= 4 else None
    bits = 8 if even is None and not settings.reencode else 4
    result = Encoded(node.name, bits, even is not None or not settings.reencode)
    block = _block(layout, bits, settings.block_size if result.exact else _LOSSY_BLOCK)
    work = _Encoding(layout, codes, book, scale, even, bits, block, result)
    blocks = -(-layout.K // block)
    name = node.name.strip("/").replace("/", ".")
    inputs = [
        node.inputs[0],
        lazy(graph, f"{name}.nbits", np.uint8, [layout.N, blocks, block * bits // 8], work.packed),
        lazy(graph, f"{name}.scales", np.float32, [layout.N, blocks], work.scales),
    ]
    if even is not None:  # a zero point of its own for each block
        inputs.append(lazy(graph, f"{name}.zero_points", np.uint8, [layout.N, -(-blocks // 2)], work.zero_points))
    attributes = {"K": layout.K, "N": layout.N, "bits": bits, "block_size": block,
                  "accuracy_level": settings.accuracy_level}  # fmt: skip
    fresh = ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)
    return result


def _block(layout: CodebookLayout, bits: int, most: int) -> int:
    """Columns that share a scale, at most `most`: what stores the fewest bytes, and does not cut a group of columns."""
    sizes = [1 << n for n in range(_SMALLEST_BLOCK.bit_length() - 1, most.bit_length())]
    fitting = [size for size in sizes if layout.groups == 1 or layout.columns_per_group % size == 0]
    return min(fitting, key=lambda size: (-(-layout.K // size) * (size * bits + 32), -size))


def _even(book: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(zero point uint8, step float32) [books, groups] if every codebook is step * (code - zero point); else None."""
    levels = book.astype(np.int64)
    first, step = levels[..., 0], levels[..., 1] - levels[..., 0]
    if np.any(step == 0) or np.any(first % step) or np.any(np.diff(levels, axis=-1) != step[..., None]):
        return None
    zero = -first // step
    if zero.min() < 0 or zero.max() > 15:
        return None
    return zero.astype(np.uint8), step.astype(np.float32)


class _Encoding:
    """One matrix's new tensors, made when they are written."""

    def __init__(self, layout, codes, book, scale, even, bits, block, result) -> None:  # type: ignore[no-untyped-def]
        self._layout, self._codes, self._book, self._scale = layout, codes, book, scale
        self._even, self._bits, self._block, self._result = even, bits, block, result
        rows = np.arange(layout.N)
        self._book_row, self._scale_row = rows // layout.rows_per_codebook, rows // layout.rows_per_scale
        self._blocks = -(-layout.K // block)
        self._group = np.arange(self._blocks) * block // layout.columns_per_group  # of each block
        self._lossy_scales: np.ndarray | None = None

    def scales(self) -> np.ndarray:
        """float32 [N, blocks]."""
        if not self._result.exact:
            if self._lossy_scales is None:  # else the codes were written just before
                self._encode_again()
            assert self._lossy_scales is not None
            found, self._lossy_scales = self._lossy_scales, None
            return found
        scale = self._scale[self._scale_row][:, self._group].astype(np.float32)
        return scale if self._even is None else scale * self._even[1][self._book_row][:, self._group]

    def zero_points(self) -> np.ndarray:
        """uint8 [N, ceil(blocks / 2)]: the code that stands for zero in each block, low half first."""
        assert self._even is not None
        zero = self._even[0][self._book_row][:, self._group]
        if zero.shape[1] % 2:
            zero = np.pad(zero, ((0, 0), (0, 1)))
        return zero[:, ::2] | (zero[:, 1::2] << 4)

    def packed(self) -> np.ndarray:
        """uint8 [N, blocks, block * bits / 8], low bits first."""
        if not self._result.exact:
            return self._encode_again()
        layout = self._layout
        out = np.empty((layout.N, self._blocks, self._block * self._bits // 8), np.uint8)
        for first in range(0, layout.N, _ROWS):
            rows = slice(first, min(first + _ROWS, layout.N))
            code = unpack(self._codes[rows], layout.bits, layout.K)
            if self._even is None:
                code = (self._levels(rows, code) + 128).astype(np.uint8)
            out[rows] = self._pack(code)
        return out

    def _levels(self, rows: slice, code: np.ndarray) -> np.ndarray:
        """int16 codebook entries [rows, K]."""
        group = np.arange(self._layout.K) // self._layout.columns_per_group
        return self._book[self._book_row[rows, None], group[None], code.astype(np.intp)].astype(np.int16)

    def _pack(self, code: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(code), self._blocks * self._block), np.uint8)
        padded[:, : code.shape[1]] = code  # columns beyond K meet activations that are not there
        if self._bits == 4:
            padded = padded[:, ::2] | (padded[:, 1::2] << 4)
        return padded.reshape(len(code), self._blocks, -1)

    def _encode_again(self) -> np.ndarray:
        """Round to nearest with 4 bits and a scale for each block: codes 0..15 stand for -8..7."""
        layout = self._layout
        out = np.empty((layout.N, self._blocks, self._block // 2), np.uint8)
        scales = np.empty((layout.N, self._blocks), np.float32)
        difference = total = 0.0
        for first in range(0, layout.N, _ROWS):
            rows = slice(first, min(first + _ROWS, layout.N))
            code = unpack(self._codes[rows], layout.bits, layout.K)
            group = np.arange(layout.K) // layout.columns_per_group
            weights = self._levels(rows, code) * self._scale[self._scale_row[rows]][:, group].astype(np.float32)
            padded = np.zeros((len(weights), self._blocks * self._block), np.float32)
            padded[:, : layout.K] = weights
            cut = padded.reshape(len(weights), self._blocks, self._block)
            extreme = np.take_along_axis(cut, np.abs(cut).argmax(-1)[..., None], -1)[..., 0]
            unit = np.where(extreme == 0, 1.0, -extreme / 8).astype(np.float32)  # the largest weight is exact: -8
            found = np.clip(np.rint(cut / unit[..., None]), -8, 7)
            difference += float(np.square(found * unit[..., None] - cut, dtype=np.float64).sum())
            total += float(np.square(cut, dtype=np.float64).sum())
            scales[rows] = unit
            out[rows] = self._pack((found + 8).astype(np.uint8).reshape(len(weights), -1))
        self._lossy_scales = scales
        self._result.error = float(np.sqrt(difference / max(total, 1e-300)))
        return out


def _array(value: ir.Value | None) -> np.ndarray:
    """A stored tensor, or scales that our exporter decodes from codes: Transpose(CodebookGather(...))."""
    assert value is not None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    inner = node.inputs[0].producer() if node is not None and node.op_type == "Transpose" and node.inputs[0] else None
    if inner is None or inner.op_type != CODEBOOK_GATHER or inner.domain != ATHENA:
        raise InputError(f"model.onnx: {value.name} is neither stored nor decoded from stored codes")
    layout = _layout(inner)
    ids, codes, book, scale = (_array(part) for part in inner.inputs)
    return np.ascontiguousarray(codebook_gather(ids, layout, codes, book, scale).T)
