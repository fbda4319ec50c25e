"""Portable Numba kernels: the codebook product, the codebook row lookup, rotary positions and softmax.

Each mirrors a plain numpy reference (export/contract/ or the tests). Bounds are checked once a call, here, before the
compiled code runs; export/reader.py has compared every stored array with the layout its node declares.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import BLOCK_COLUMNS
from export.contract.sparse import SparseLayout

_SMALL = 1 << 16  # weights below which starting threads costs more than they save
TILE_ROWS = 512  # rows decoded at once for a matrix product with several tokens


@nb.njit(cache=True, inline="always")
def decode_row(packed, bits, width, codes):  # type: ignore[no-untyped-def]
    """Unpack one row of codes (layout in export/packing.py) into codes uint8 [width]."""
    at = 0
    for start in range(0, width, BLOCK_COLUMNS):
        columns = min(BLOCK_COLUMNS, width - start)
        for k in range(columns):
            codes[start + k] = 0
        for p in (8, 4, 2, 1):
            if bits & p:
                size = (columns * p + 7) // 8
                mask = (1 << p) - 1
                for f in range(8 // p):
                    first = f * size
                    shift = f * p
                    for j in range(min(size, columns - first)):
                        field = (packed[at + j] >> shift) & mask
                        codes[start + first + j] = (codes[start + first + j] << p) | field
                at += size


@nb.njit(cache=True, inline="always")
def _weights_row(n, codes, codebook, scale, bits, group, per_book, per_scale, code, out):  # type: ignore[no-untyped-def]
    """Dequantize row n into out float32 [K]; code is scratch uint8 [K]."""
    width = out.size
    decode_row(codes[n], bits, width, code)
    for g in range(codebook.shape[1]):
        s = scale[n // per_scale, g]
        book = codebook[n // per_book, g]
        for k in range(g * group, min((g + 1) * group, width)):
            out[k] = s * book[code[k]]


@nb.njit(cache=True, fastmath={"reassoc", "contract"})
def _products(x, first, last, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
    tokens, width = x.shape
    code = np.empty(width, np.uint8)
    row = np.empty(width, np.float32)
    for n in range(first, last):
        _weights_row(n, codes, codebook, scale, bits, group, per_book, per_scale, code, row)
        for t in range(tokens):
            total = np.float32(0.0)
            for k in range(width):
                total += x[t, k] * row[k]
            out[t, n] = total


@nb.njit(cache=True, parallel=True)
def _products_parallel(x, parts, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
    rows = codes.shape[0]
    for part in nb.prange(parts):
        first, last = part * rows // parts, (part + 1) * rows // parts
        _products(x, first, last, codes, codebook, scale, bits, group, per_book, per_scale, out)


@nb.njit(cache=True, parallel=True)
def _dequantize_rows(rows, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
    for i in nb.prange(rows.size):
        code = np.empty(out.shape[1], np.uint8)
        _weights_row(rows[i], codes, codebook, scale, bits, group, per_book, per_scale, code, out[i])


def codebook_matmul(
    x: np.ndarray, layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """x [T, K] float32 times the transposed codebook matrix -> [T, N] float32. scale must be float32.

    Raises ValueError when x has another width, or the weights are not of the layout.
    """
    x = np.ascontiguousarray(x, np.float32)
    _require(x.ndim == 2 and x.shape[1] == layout.K, "the input does not have K columns")
    _require_stored(layout, codes, codebook, scale)
    tokens = x.shape[0]
    out = np.empty((tokens, layout.N), np.float32)
    shape = (layout.bits, layout.columns_per_group, layout.rows_per_codebook, layout.rows_per_scale)
    if tokens <= 4:
        if layout.N * layout.K < _SMALL:
            _products(x, 0, layout.N, codes, codebook, scale, *shape, out)
        else:
            _products_parallel(x, 4 * nb.get_num_threads(), codes, codebook, scale, *shape, out)
        return out
    for first in range(0, layout.N, TILE_ROWS):
        rows = np.arange(first, min(first + TILE_ROWS, layout.N))
        tile = np.empty((rows.size, layout.K), np.float32)
        _dequantize_rows(rows, codes, codebook, scale, *shape, tile)
        out[:, first : first + rows.size] = x @ tile.T
    return out


def codebook_gather(
    ids: np.ndarray, layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Rows `ids` int64 [T] of the codebook matrix -> float32 [T, K]. Raises IndexError on an id outside 0..N-1."""
    ids = np.ascontiguousarray(ids, np.int64)
    _require(ids.ndim == 1, "ids must be a list")
    _require_stored(layout, codes, codebook, scale)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= layout.N):
        raise IndexError(f"token id outside 0..{layout.N - 1}")
    out = np.empty((ids.size, layout.K), np.float32)
    shape = (layout.bits, layout.columns_per_group, layout.rows_per_codebook, layout.rows_per_scale)
    _dequantize_rows(ids, codes, codebook, scale, *shape, out)
    return out


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """Rotary positions: x float32 [T, H, D], cos and sin [T, R] with R <= D / 2; a new array.

    Pair i is (i, i + R), or (2 i, 2 i + 1) where interleaved.
    Raises ValueError when the shapes do not fit.
    """
    x, cos, sin = (np.ascontiguousarray(a, np.float32) for a in (x, cos, sin))
    _require(x.ndim == 3 and cos.ndim == 2 and cos.shape == sin.shape, "cos and sin must be [tokens, half]")
    _require(cos.shape[0] == x.shape[0] and 2 * cos.shape[1] <= x.shape[2], "cos and sin do not fit the heads")
    return _rotate(x, cos, sin, interleaved)


@nb.njit(cache=True)
def _rotate(x, cos, sin, interleaved):  # type: ignore[no-untyped-def]
    tokens, heads, _ = x.shape
    half = cos.shape[1]
    out = x.copy()
    for t in range(tokens):
        for h in range(heads):
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                a, b = x[t, h, first], x[t, h, second]
                out[t, h, first] = a * cos[t, i] - b * sin[t, i]
                out[t, h, second] = b * cos[t, i] + a * sin[t, i]
    return out


def masked_softmax(
    scores: np.ndarray, mask: np.ndarray, past: int, repeat: int, scale: np.float32, causal: bool = True
) -> None:
    """Softmax in place over scores float32 [heads, repeat * T, total], after multiplying them by scale.

    Row r of a head is query r % T at position past + r % T. It sees the keys whose mask entry is True, when causal only
    up to its own position; mask is bool [1 or T, total]. Other keys get probability zero, and so does everything in a
    row that sees no key at all. Raises ValueError when the shapes do not fit.
    """
    _require(
        scores.ndim == 3 and scores.dtype == np.float32 and repeat > 0, "scores must be float32 of three dimensions"
    )
    tokens = scores.shape[1] // repeat
    fits = mask.ndim == 2 and mask.dtype == np.bool_ and mask.shape[1] == scores.shape[2]
    _require(fits and mask.shape[0] in (1, tokens), "the mask must be bool [1 or tokens, keys]")
    total = scores.shape[2]
    _require(tokens * repeat == scores.shape[1] and past + tokens == total, "more keys than positions")
    _masked_softmax(scores, np.ascontiguousarray(mask), past if causal else total, repeat, np.float32(scale))


def _require_stored(layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
    shapes = codes.shape, codebook.shape, scale.shape
    dtypes = codes.dtype, codebook.dtype, scale.dtype
    fit = shapes == (layout.codes_shape, layout.codebook_shape, layout.scale_shape)
    _require(fit and dtypes == (np.uint8, np.int8, np.float32), "the weights do not have the declared layout")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@nb.njit(cache=True, fastmath={"reassoc", "contract"})
def _masked_softmax(scores, mask, past, repeat, scale):  # type: ignore[no-untyped-def]
    heads, rows, total = scores.shape
    tokens = rows // repeat
    for h in range(heads):
        for r in range(rows):
            row = scores[h, r]
            visible = mask[r % tokens if mask.shape[0] > 1 else 0]
            stop = min(past + r % tokens + 1, total)
            top = np.float32(-np.inf)
            for k in range(stop):
                row[k] *= scale
                if visible[k]:
                    top = max(top, row[k])
            weight = np.float32(0.0)
            for k in range(stop):
                row[k] = np.exp(row[k] - top) if visible[k] else np.float32(0.0)
                weight += row[k]
            inverse = np.float32(1.0) / weight if weight > 0.0 else np.float32(0.0)
            for k in range(stop):
                row[k] *= inverse
            for k in range(stop, total):
                row[k] = 0.0


def sparse_matmul(layout: SparseLayout, x: np.ndarray, gaps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """x float32 [..., K] times a sparse matrix: float32 [..., N], by adding up each row's products."""
    rows, columns = np.divmod(layout.places(gaps, values), layout.K)
    products = x.reshape(-1, layout.K)[:, columns] * values.astype(np.float32)
    out = np.zeros((len(products), layout.N), np.float32)
    filled = np.flatnonzero(np.diff(rows, prepend=-1))  # the first entry of every row that has one
    if filled.size:
        out[:, rows[filled]] = np.add.reduceat(products, filled, axis=1)
    return out.reshape(*x.shape[:-1], layout.N)
