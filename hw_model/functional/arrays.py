"""Arrays with converters, conversion by conversion, on packed bits: what an effective number of bits does to a product.

Inputs are int8, sent a bit (or a few) at a time; every bit of an int8 weight is a column; an array sums at most `rows`
products on a bit line. Ones-splitting (RAP, arXiv 2411.14733) raises at most `active` word lines that carry a one at a
time and clips a sum to the converter's range; an analog array raises all rows at once, and its converter spans what all
of them could give, in steps of more than one where it has too few. The slow form is in tests/hw_model/test_arrays.py.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

_WORD = 64


def ones_splitting(
    x: np.ndarray, weights: np.ndarray, rows: int, active: int, top: int, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """x int8 [T, K] times weights int8 [N, K] transposed: int64 [T, N].

    top: largest sum that the converter tells. noise: standard deviation of a conversion, in steps, per root of the
    word lines raised; results are rounded and clipped to 0..top.
    """
    planes = _planes(np.ascontiguousarray(x, np.int8).view(np.uint8), rows)
    columns = _planes(np.ascontiguousarray(weights, np.int8).view(np.uint8), rows)
    return _split(planes, columns, active, top, noise, seed)


def analog(
    x: np.ndarray, weights: np.ndarray, rows: int, slice_bits: int, top: int, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """As ones_splitting with all rows at once: float64 [T, N], whole numbers where the converter loses nothing.

    slice_bits: input bits of one conversion (1, 2, 4 or 8). More than one are sent as numbers from 0 on, 128 above the
    input; what that adds is subtracted behind the converters. noise: in steps of one product.
    """
    x, weights = np.ascontiguousarray(x, np.int8), np.ascontiguousarray(weights, np.int8)
    raised = x.view(np.uint8) if slice_bits == 1 else (x.astype(np.int16) + 128).astype(np.uint8)
    columns = _planes(weights.view(np.uint8), rows)
    step = max(rows * (2**slice_bits - 1) / top, 1.0)
    found = _at_once(_planes(raised, rows), columns, slice_bits, top, step, noise, seed)
    return found if slice_bits == 1 else found - 128.0 * weights.sum(axis=1, dtype=np.int64)


def _planes(numbers: np.ndarray, rows: int) -> np.ndarray:
    """uint8 [M, K] as bit planes of tiles of `rows` columns: uint64 [M, 8, tiles, words]."""
    count, columns = numbers.shape
    tiles, words = -(-columns // rows), -(-rows // _WORD)
    bits = np.zeros((count, 8, tiles, words * _WORD), np.uint8)
    for tile in range(tiles):
        part = numbers[:, tile * rows : (tile + 1) * rows]
        bits[:, :, tile, : part.shape[1]] = (part[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint64)


@nb.njit(inline="always")
def _ones(x):  # type: ignore[no-untyped-def]
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@nb.njit
def _split(planes, columns, active, top, noise, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    tokens, _, tiles, words = planes.shape
    outputs = columns.shape[0]
    out = np.zeros((tokens, outputs), np.int64)
    runs = np.zeros((words * 64 + 1, words), np.uint64)
    raised = np.zeros(words * 64 + 1, np.int64)
    one = np.uint64(1)
    for t in range(tokens):
        for b in range(8):
            place = -(1 << b) if b == 7 else 1 << b
            for g in range(tiles):
                count = 0
                raised[0] = 0
                runs[0, :] = 0
                for w in range(words):
                    rest = planes[t, b, g, w]
                    while rest != 0:
                        low = rest & (~rest + one)
                        rest ^= low
                        if raised[count] == active:
                            count += 1
                            raised[count] = 0
                            runs[count, :] = 0
                        runs[count, w] |= low
                        raised[count] += 1
                if raised[0] == 0:
                    continue
                for n in range(outputs):
                    total = 0
                    for j in range(8):
                        column = 0
                        for r in range(count + 1):
                            found = 0
                            for w in range(words):
                                found += _ones(runs[r, w] & columns[n, j, g, w])
                            if noise > 0.0:
                                found = int(np.rint(found + np.random.normal(0.0, noise * math.sqrt(raised[r]))))
                                found = max(found, 0)
                            column += min(found, top)
                        total += column * (-(1 << j) if j == 7 else 1 << j)
                    out[t, n] += place * total
    return out


@nb.njit
def _at_once(planes, columns, slice_bits, top, step, noise, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    tokens, _, tiles, words = planes.shape
    outputs = columns.shape[0]
    out = np.zeros((tokens, outputs))
    for t in range(tokens):
        for first in range(0, 8, slice_bits):
            place = -float(1 << first) if slice_bits == 1 and first == 7 else float(1 << first)
            for g in range(tiles):
                raised = 0
                for b in range(first, first + slice_bits):
                    for w in range(words):
                        raised += _ones(planes[t, b, g, w])
                for n in range(outputs):
                    total = 0.0
                    for j in range(8):
                        found = 0
                        for b in range(first, first + slice_bits):
                            ones = 0
                            for w in range(words):
                                ones += _ones(planes[t, b, g, w] & columns[n, j, g, w])
                            found += ones << (b - first)
                        level = float(found)
                        if noise > 0.0:
                            level += np.random.normal(0.0, noise * math.sqrt(raised))
                        code = min(max(np.rint(level / step), 0.0), float(top))
                        total += code * step * (-float(1 << j) if j == 7 else float(1 << j))
                    out[t, n] += place * total
    return out
