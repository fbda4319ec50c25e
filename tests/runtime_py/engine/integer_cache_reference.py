"""A cache of integer codes in plain numpy: the rotation, the codes of a head, and where they lie."""

from __future__ import annotations

import numpy as np

_F = np.float32


def rotation(head_dim: int) -> np.ndarray:
    """float64 [head_dim, head_dim]: blocks of the Walsh-Hadamard matrix, orthogonal and its own inverse."""
    size = head_dim & -head_dim
    block = np.ones((1, 1))
    while len(block) < size:
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(head_dim // size), block / np.sqrt(size))


def rotated(x: np.ndarray) -> np.ndarray:
    """float32 [head_dim] times rotation(), added up in the kernel's order."""
    size, out = x.size & -x.size, x.astype(_F)
    factor, apart, scaled = _F(1) / np.sqrt(_F(size)), 1, False
    while apart < size or not scaled:
        if not scaled and (apart >= size or apart == 16):  # behind the steps inside a vector
            out, scaled = out * factor, True
            continue
        sign = np.where(np.arange(x.size) & apart, _F(-1), _F(1))
        out = out[np.arange(x.size) ^ apart] + sign * out
        apart *= 2
    return out


def lane_sum(x: np.ndarray) -> np.float32:
    """Of float32 [wide], in 16 lanes."""
    lanes = np.zeros(16, _F)
    for part in x.reshape(-1, 16):
        lanes = lanes + part
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def codes(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32]:
    """int64 [wide] and a scale for float32 [wide]."""
    largest = np.abs(x).max()
    if not largest > _F(1e-30):
        return np.zeros(x.size, np.int64), _F(0)
    if bits == 8:
        scale = largest * _F(1 / 127)
        return np.rint(x * (_F(1) / scale)).astype(np.int64), scale
    best = None
    for part in (1.0, 0.925, 0.85):
        scale = largest * _F(1 / 7.5) * _F(part) if part < 1 else largest * _F(1 / 7.5)
        found = np.clip(np.rint(x * (_F(1) / scale)), -8, 7)
        off = found.astype(_F) * scale - x
        with np.errstate(over="ignore"):
            error = lane_sum(off * off)
        if best is None or error < best[0]:
            best = error, found.astype(np.int64), scale
    assert best is not None
    return best[1], best[2]


def stored(rows: np.ndarray, capacity: int, bits: int, values: bool) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of keys (or values) float32 [positions, heads, head_dim], and what they stand for, float64.

    Blocks: uint8 [heads, capacity / 16, bytes]; positions that are not given have codes and scales of zero.
    """
    count, heads, head_dim = rows.shape
    wide = -(-head_dim // 16) * 16
    found, scales = np.zeros((heads, capacity, wide), np.int64), np.zeros((heads, capacity), _F)
    centers = np.zeros((heads, wide), _F)
    for p in range(count):
        for h in range(heads):
            padded = np.zeros(wide, _F)
            padded[:head_dim] = rotated(rows[p, h])
            if bits == 4 and not values and p >= 16:
                for before in range(1, 16) if p == 16 else ():
                    centers[h] += scales[h, before] * found[h, before].astype(_F)
                centers[h] *= _F(1 / 15) if p == 16 else _F(1)
                padded -= centers[h]
            found[h, p], scales[h, p] = codes(padded, bits)
    meant = found[:, :count] * scales[:, :count, None].astype(np.float64)
    meant[:, 16:] += centers[:, None]
    meant = meant[..., :head_dim].transpose(1, 0, 2)
    shifted = found.copy() if bits == 8 else found + 8
    if bits == 4:
        shifted[:, count:] = 0
    blocks = shifted.reshape(heads, -1, 16, wide)  # of 16 positions
    if values:
        parts = blocks.reshape(heads, -1, 4, 4, wide // 16, 16).transpose(0, 1, 4, 2, 5, 3)  # chunk, four, dim
        if bits == 4:
            parts = parts[:, :, :, 0::2] | parts[:, :, :, 1::2] << 4
    else:
        parts = blocks.reshape(heads, -1, 16, wide // 4, 4).transpose(0, 1, 3, 2, 4)  # four of dims
        if bits == 4:
            parts = parts[:, :, 0::2] | parts[:, :, 1::2] << 4
    data = (parts.reshape(heads, capacity // 16, -1) & 255).astype(np.uint8)
    ends = scales.reshape(heads, -1, 16).copy().view(np.uint8)
    return np.concatenate([data, ends], axis=2), meant
