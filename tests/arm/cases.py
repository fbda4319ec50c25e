"""The cases that both machines compute: products of every width."""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.groups import MINIMA, ONE_ZERO, ZEROS, GroupsLayout
from export.contract.formats.halves import HALF, joined
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import pack
from runtime_py.engine.kernels.groups import GROUP_ROWS, group_item, group_rows
from runtime_py.engine.kernels.matmul import matmul_item
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import group_sums, quantize_group, quantize_token, token_shares
from runtime_py.engine.layout.products import HIGH_GROUP, padded, scratch_bytes, tile_shape, width_tag
from runtime_py.engine.records.group_matrix import GroupMatrix, group_record
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET
from runtime_py.system.guard_pages import aligned_bytes

SHAPES = ((33, 640), (7, 300))  # rows, columns: whole blocks with a half one, and an odd tail
TOKENS = 20


@nb.njit
def _all_rows(isa, width, tile, items, matrix, quantized, sums, scales, high, tokens, out, scratch):
    for item in range(items):
        matmul_item(isa, width, tile, matrix, item, quantized, sums, scales, high, tokens, out, 0, False, 1, scratch)


def product(isa: str, layout: CodebookLayout | TrellisLayout, tokens: int) -> np.ndarray:
    """Random tokens times a random matrix through the kernels of `isa`, float32 [tokens, rows]; the same everywhere."""
    bits, rows, columns = layout.bits, layout.N, layout.K
    rng = np.random.default_rng(100 * bits + tokens)
    codes = pack(rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8), bits)
    if isinstance(layout, TrellisLayout):
        book = joined(rng.integers(-63, 64, (layout.codebook_shape[0], 2 * HALF)).astype(np.int8), bits)
    else:
        book = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(np.float32)
    x = rng.random((tokens, columns)).astype(np.float32) - np.float32(0.5)
    x[:, 5::100] *= np.float32(300)  # outliers
    record, _keep = matrix_record(layout, codes, book, scale, halves=True)
    width = width_tag(matrix_width(record))
    blocks, wide, groups = -(-columns // 256), padded(columns), -(-tokens // 32) * 2
    buffers = [aligned_bytes(groups * n) for n in (16 * wide, blocks * 64, blocks * 64, blocks * HIGH_GROUP)]
    addresses = [b.ctypes.data for b in buffers]
    out, scratch = np.zeros((tokens, rows), np.float32), aligned_bytes(scratch_bytes(columns) + 8192)
    tag, offset = ISAS[isa], WEIGHT_OFFSET[isa]
    if tokens == 1:
        quantize_token(tag, offset, x.ctypes.data, columns, 0, blocks, *addresses)
        matvec_rows(tag, width, record.ctypes.data, *addresses, 0, rows, out.ctypes.data, 0, False, scratch.ctypes.data)
        return out
    for group in range(-(-tokens // 16)):
        quantize_group(
            tag, offset, x.ctypes.data, columns, columns, group, tokens, 0, blocks, *addresses, scratch.ctypes.data
        )
    height, vectors = tile_shape(isa, False)
    items = -(-rows // height)
    _all_rows(
        tag, width, (height, vectors, False), items, record.ctypes.data, *addresses, tokens, out.ctypes.data,
        scratch.ctypes.data,
    )  # fmt: skip
    return out


@nb.njit
def _all_group_rows(isa, width, items, matrix, quantized, scales, high, sums, tokens, out, scratch):
    for item in range(items):
        group_item(isa, width, matrix, item, quantized, scales, high, sums, tokens, out, 0, False, 1, scratch)


def group_product(isa: str, bits: int, offsets: int, rows: int, columns: int, tokens: int) -> np.ndarray:
    """As product(), of codes with scales for groups of 32 columns."""
    rng = np.random.default_rng(1000 * bits + 10 * offsets + tokens)
    layout = GroupsLayout(bits, columns, rows, 32, offsets)
    parts = [layout.random(part, rng, 0.02) for part in layout.parts()]
    parts[1] = rng.standard_normal(layout.scale_shape).astype(np.float16)
    x = rng.random((tokens, columns)).astype(np.float32) - np.float32(0.5)
    x[:, 5::100] *= np.float32(300)  # outliers
    row, _keep = group_record(layout, *parts)
    matrix, blocks, wide = GroupMatrix.of(row.tolist()), -(-columns // 256), padded(columns)
    pairs, size, width = -(-tokens // 32) * 2, matrix.group_columns, width_tag(matrix.width)
    sizes = (16 * wide, blocks * 64, blocks * 64, blocks * HIGH_GROUP, 64 * wide, 64 * wide)
    buffers = [aligned_bytes(pairs * n) for n in sizes]
    q, sums, scales, high, starts, shares = (b.ctypes.data for b in buffers)
    out, scratch = np.zeros((tokens, rows), np.float32), aligned_bytes(scratch_bytes(columns) + 8192)
    tag, offset, at, to = ISAS[isa], WEIGHT_OFFSET[isa], row.ctypes.data, out.ctypes.data
    if tokens == 1:
        quantize_token(tag, offset, x.ctypes.data, columns, 0, blocks, q, sums, scales, high)
        token_shares(tag, offset, columns, 0, blocks, size, q, scales, high, starts, shares)
        group_rows(tag, width, at, q, scales, high, starts, shares, 0, rows, to, 0, False, scratch.ctypes.data)
        return out
    for group in range(-(-tokens // 16)):
        quantize_group(
            tag,
            offset,
            x.ctypes.data,
            columns,
            columns,
            group,
            tokens,
            0,
            blocks,
            q,
            sums,
            scales,
            high,
            scratch.ctypes.data,
        )
        group_sums(tag, columns, group, 0, blocks, size, q, high, starts)
    items = -(-rows // GROUP_ROWS)
    _all_group_rows(tag, width, items, at, q, scales, high, starts, tokens, to, scratch.ctypes.data)
    return out


def group_products(isa: str) -> dict[str, np.ndarray]:
    """Products with group scales, of the two kinds of codes and all kinds of offsets, by name."""
    return {
        f"groups-{bits}-{offsets}-{rows}x{columns}-{tokens}": group_product(isa, bits, offsets, rows, columns, tokens)
        for bits, offsets in ((4, ONE_ZERO), (4, ZEROS), (4, MINIMA), (8, ONE_ZERO))
        for rows, columns in SHAPES
        for tokens in (1, 9)
    }


def products(isa: str, widths: tuple[int, ...], paths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All product cases of these widths of scalar and of trellis codes, by name."""
    found = {
        f"product-{bits}-{rows}x{columns}-{tokens}": product(isa, CodebookLayout(bits, columns, rows), tokens)
        for bits in widths
        for rows, columns in SHAPES
        for tokens in (1, 9)
    }
    for layout in (TrellisLayout(bits, columns, rows, 8, 16) for bits in paths for rows, columns in SHAPES):
        for tokens in (1, 9):
            found[f"trellis-{layout.bits}-{layout.N}x{layout.K}-{tokens}"] = product(isa, layout, tokens)
    return found
