"""The cases that both machines compute: products of every width, and a short generation by a whole model."""

from __future__ import annotations

from pathlib import Path

import numba as nb
import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack
from runtime_py.engine.kernels import matmul
from runtime_py.engine.kernels.matmul import matmul_item
from runtime_py.engine.kernels.matrix import padded
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_group, quantize_token
from runtime_py.engine.records.stored_matrix import matrix_record
from runtime_py.load import open_model
from runtime_py.simd.codes import WIDTHS
from runtime_py.simd.isa import ISAS, WEIGHT_OFFSET
from runtime_py.system.guard_pages import aligned_bytes

SHAPES = ((33, 640), (7, 300))  # rows, columns: whole blocks with a half one, and an odd tail
TOKENS = 20


@nb.njit
def _all_rows(isa, width, tile, items, matrix, quantized, sums, scales, tokens, out, scratch):
    for item in range(items):
        matmul_item(isa, width, tile, matrix, item, quantized, sums, scales, tokens, out, 0, False, 1, scratch)


def product(isa: str, bits: int, rows: int, columns: int, tokens: int) -> np.ndarray:
    """Random tokens times a random matrix through the kernels of `isa`, float32 [tokens, rows]; the same everywhere."""
    rng = np.random.default_rng(100 * bits + tokens)
    layout = CodebookLayout(bits, columns, rows)
    codes = pack(rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8), bits)
    book = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(np.float32)
    x = rng.random((tokens, columns)).astype(np.float32) - np.float32(0.5)
    record, _keep = matrix_record(layout, codes, book, scale)
    blocks, wide, groups = -(-columns // 256), padded(columns), -(-tokens // 32) * 2
    buffers = [aligned_bytes(groups * n) for n in (16 * wide, blocks * 64, blocks * 64)]
    addresses = [b.ctypes.data for b in buffers]
    out, scratch = np.zeros((tokens, rows), np.float32), aligned_bytes(matmul.scratch_bytes(columns) + 4096)
    tag, offset = ISAS[isa], WEIGHT_OFFSET[isa]
    if tokens == 1:
        quantize_token(tag, offset, x.ctypes.data, columns, 0, blocks, *addresses)
        matvec_rows(
            tag, WIDTHS[bits], record.ctypes.data, *addresses, 0, rows, out.ctypes.data, 0, False, scratch.ctypes.data
        )
        return out
    for group in range(-(-tokens // 16)):
        quantize_group(
            tag, offset, x.ctypes.data, columns, columns, group, tokens, 0, blocks, *addresses, scratch.ctypes.data
        )
    height, vectors = matmul.tile_shape(isa, False)
    items = -(-rows // height)
    _all_rows(
        tag, WIDTHS[bits], (height, vectors, False), items, record.ctypes.data, *addresses, tokens, out.ctypes.data,
        scratch.ctypes.data,
    )  # fmt: skip
    return out


def products(isa: str, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All product cases of these widths, by name."""
    return {
        f"product-{bits}-{rows}x{columns}-{tokens}": product(isa, bits, rows, columns, tokens)
        for bits in widths
        for rows, columns in SHAPES
        for tokens in (1, 9)
    }


def generation(folder: Path) -> dict[str, np.ndarray]:
    """Greedy tokens after a fixed prompt, and the logits of every step (bit patterns)."""
    model, why = open_model(folder)
    assert why == ""
    state = model.new_state()
    logits = model.forward(state, [1, 403, 407, 261, 378], last_only=True)
    tokens, rows = [], [logits[-1]]
    for _ in range(TOKENS):
        tokens.append(int(rows[-1].argmax()))
        rows.append(model.forward(state, tokens[-1:], last_only=True)[-1])
    return {"tokens": np.array(tokens), "logits": np.array(rows).view(np.uint32)}
