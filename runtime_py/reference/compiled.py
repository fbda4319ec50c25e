"""The compiled loops of kernels.py and groups.py, in portable Numba. Bounds are checked there, before these run."""

from __future__ import annotations

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)

import numba as nb  # isort: skip
import numpy as np

from export.contract.packing import BLOCK_COLUMNS


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
def products(x, first, last, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
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
def products_parallel(x, parts, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
    rows = codes.shape[0]
    for part in nb.prange(parts):
        first, last = part * rows // parts, (part + 1) * rows // parts
        products(x, first, last, codes, codebook, scale, bits, group, per_book, per_scale, out)


@nb.njit(cache=True, parallel=True)
def dequantize_rows(rows, codes, codebook, scale, bits, group, per_book, per_scale, out):  # type: ignore[no-untyped-def]
    for i in nb.prange(rows.size):
        code = np.empty(out.shape[1], np.uint8)
        _weights_row(rows[i], codes, codebook, scale, bits, group, per_book, per_scale, code, out[i])


@nb.njit(cache=True)
def rotated(x, cos, sin, interleaved):  # type: ignore[no-untyped-def]
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


@nb.njit(cache=True, fastmath={"reassoc", "contract"})
def softmax_masked(scores, mask, past, repeat, scale):  # type: ignore[no-untyped-def]
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


@nb.njit(cache=True, parallel=True)
def decode_groups(rows, codes, scale, offset, bits, group, one, minima, out):  # type: ignore[no-untyped-def]
    """one: all groups have the first offset. minima: offsets are added, not subtracted from codes."""
    for i in nb.prange(rows.size):
        n, columns = rows[i], out.shape[1]
        code = np.empty(columns, np.uint8)
        decode_row(codes[n], bits, columns, code)
        for k in range(columns):
            g = k // group
            factor, own = scale[n, g], offset[0, 0] if one else offset[n, g]
            value = np.float32(code[k])
            out[i, k] = factor * value + own if minima else factor * (value - own)
