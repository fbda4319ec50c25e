"""The integer products with group-scaled codes in plain numpy, every rounding as kernels/groups.py has it."""

from __future__ import annotations

import numpy as np

from export.contract.formats.groups import MINIMA, ONE_ZERO, GroupsLayout
from export.contract.packing import unpack
from tests.runtime_py.engine.activation_reference import quantized, tree


def fused(a, b, c) -> np.ndarray:
    """float32 a * b + c, rounded once: the sum in float64, rounded to odd, which makes the second rounding harmless."""
    a, b, c = (np.asarray(v, np.float32).astype(np.float64) for v in np.broadcast_arrays(a, b, c))
    product = a * b  # exact: 48 bits
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def _parts(layout: GroupsLayout, arrays, size: int):  # type: ignore[no-untyped-def]
    """Integers int64 [N, K], factors and offsets float32 [N, groups of `size` columns]."""
    codes, scale, offset = arrays
    base = 128 if layout.bits == 8 else 0
    integers = unpack(codes, layout.bits, layout.K).astype(np.int64) - base
    groups = np.arange(-(-layout.K // size)) * size // layout.group_size
    factors = scale.astype(np.float32)[:, groups]
    if layout.offsets == MINIMA:
        return integers, factors, offset.astype(np.float32)[:, groups]
    zeros = np.broadcast_to(offset, layout.scale_shape).astype(np.int64)[:, groups]
    return integers, factors, factors * (base - zeros).astype(np.float32)


def _has_offsets(layout: GroupsLayout, arrays) -> bool:  # type: ignore[no-untyped-def]
    return not (layout.offsets == ONE_ZERO and arrays[2][0, 0] == (128 if layout.bits == 8 else 0))


def _padded(values: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, -values.shape[1] % multiple)))


def one_token(x: np.ndarray, layout: GroupsLayout, arrays, size: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """x float32 [1, K] -> float32 [1, N]; size: columns of a group in the kernels."""
    q, scales = quantized(x)
    integers, factors, offsets = _parts(layout, arrays, size)
    total = np.zeros((layout.N, 16), np.float32)
    sums = np.add.reduceat(q[0], np.arange(0, layout.K, size))
    shares = sums.astype(np.float32) * scales[0, np.arange(len(sums)) * size // 256]
    if _has_offsets(layout, arrays):
        own, given = _padded(offsets, 16), _padded(shares[None], 16)
        for g in range(0, own.shape[1], 16):
            total = fused(own[:, g : g + 16], given[:, g : g + 16], total)
    wide, q = _padded(integers, 64), _padded(q, 64)
    for b in range(scales.shape[1]):
        inner = np.zeros_like(total)
        for k in range(256 * b, min(256 * b + 256, wide.shape[1]), 64):
            acc = (wide[:, k : k + 64] * q[:, k : k + 64]).reshape(layout.N, 16, 4).sum(axis=2)
            group = np.minimum((k + 4 * np.arange(16)) // size, factors.shape[1] - 1)
            inner = fused(acc.astype(np.float32), factors[:, group], inner)
        total = fused(inner, scales[0, b], total)
    return tree(total)[None]


def several_tokens(x: np.ndarray, layout: GroupsLayout, arrays, size: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """x float32 [T, K] -> float32 [T, N]."""
    q, scales = quantized(x)
    integers, factors, offsets = _parts(layout, arrays, size)
    total, base = np.zeros((len(x), layout.N), np.float32), 128 if layout.bits == 8 else 0
    for b in range(scales.shape[1]):
        inner = np.zeros_like(total)
        for k in range(256 * b, min(256 * b + 256, layout.K), size):
            columns, g = slice(k, min(k + size, layout.K)), k // size
            acc = q[:, columns] @ integers[:, columns].T
            if layout.offsets == ONE_ZERO:
                acc -= q[:, columns].sum(axis=1, keepdims=True) * (int(arrays[2][0, 0]) - base)
            inner = fused(acc.astype(np.float32), factors[:, g], inner)
            if layout.offsets != ONE_ZERO:
                inner = fused(q[:, columns].sum(axis=1, keepdims=True).astype(np.float32), offsets[:, g], inner)
        total = fused(inner, scales[:, b : b + 1], total)
    return total
