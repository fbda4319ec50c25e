"""The codebook product, the codebook row lookup, rotary positions and softmax.

Each mirrors a plain numpy reference (export/contract/ or the tests). Bounds are checked once a call, here, before the
compiled code runs (compiled.py, imported where it is used: it needs Numba); export/reader.py has compared every stored
array with the layout its node declares.
"""

from __future__ import annotations

import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.sparse import SparseLayout
from runtime_py.system.thread_pool import available_threads

_SMALL = 1 << 16  # weights below which starting threads costs more than they save
TILE_ROWS = 512  # rows decoded at once for a matrix product with several tokens


def codebook_matmul(
    x: np.ndarray, layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """x [T, K] float32 times the transposed codebook matrix -> [T, N] float32. scale must be float32.

    Raises ValueError when x has another width, or the weights are not of the layout.
    """
    x = np.ascontiguousarray(x, np.float32)
    _require(x.ndim == 2 and x.shape[1] == layout.K, "the input does not have K columns")
    _require_stored(layout, codes, codebook, scale)
    from runtime_py.reference.compiled import dequantize_rows, products, products_parallel

    tokens = x.shape[0]
    out = np.empty((tokens, layout.N), np.float32)
    shape = (layout.bits, layout.columns_per_group, layout.rows_per_codebook, layout.rows_per_scale)
    if tokens <= 4:
        if layout.N * layout.K < _SMALL:
            products(x, 0, layout.N, codes, codebook, scale, *shape, out)
        else:
            products_parallel(x, 4 * available_threads(), codes, codebook, scale, *shape, out)
        return out
    for first in range(0, layout.N, TILE_ROWS):
        rows = np.arange(first, min(first + TILE_ROWS, layout.N))
        tile = np.empty((rows.size, layout.K), np.float32)
        dequantize_rows(rows, codes, codebook, scale, *shape, tile)
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
    from runtime_py.reference.compiled import dequantize_rows

    out = np.empty((ids.size, layout.K), np.float32)
    shape = (layout.bits, layout.columns_per_group, layout.rows_per_codebook, layout.rows_per_scale)
    dequantize_rows(ids, codes, codebook, scale, *shape, out)
    return out


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """Rotary positions: x float32 [T, H, D], cos and sin [T, R] with R <= D / 2; a new array.

    Pair i is (i, i + R), or (2 i, 2 i + 1) where interleaved.
    Raises ValueError when the shapes do not fit.
    """
    x, cos, sin = (np.ascontiguousarray(a, np.float32) for a in (x, cos, sin))
    _require(x.ndim == 3 and cos.ndim == 2 and cos.shape == sin.shape, "cos and sin must be [tokens, half]")
    _require(cos.shape[0] == x.shape[0] and 2 * cos.shape[1] <= x.shape[2], "cos and sin do not fit the heads")
    from runtime_py.reference.compiled import rotated

    return rotated(x, cos, sin, interleaved)


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
    from runtime_py.reference.compiled import softmax_masked

    softmax_masked(scores, np.ascontiguousarray(mask), past if causal else total, repeat, np.float32(scale))


def _require_stored(layout: CodebookLayout, codes: np.ndarray, codebook: np.ndarray, scale: np.ndarray) -> None:
    shapes = codes.shape, codebook.shape, scale.shape
    dtypes = codes.dtype, codebook.dtype, scale.dtype
    fit = shapes == (layout.codes_shape, layout.codebook_shape, layout.scale_shape)
    _require(fit and dtypes == (np.uint8, np.int8, np.float32), "the weights do not have the declared layout")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def sparse_matmul(layout: SparseLayout, x: np.ndarray, gaps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """x float32 [..., K] times a sparse matrix: float32 [..., N], by adding up each row's products."""
    rows, columns = np.divmod(layout.places(gaps, values), layout.K)
    products = x.reshape(-1, layout.K)[:, columns] * values.astype(np.float32)
    out = np.zeros((len(products), layout.N), np.float32)
    filled = np.flatnonzero(np.diff(rows, prepend=-1))  # the first entry of every row that has one
    if filled.size:
        out[:, rows[filled]] = np.add.reduceat(products, filled, axis=1)
    return out.reshape(*x.shape[:-1], layout.N)
