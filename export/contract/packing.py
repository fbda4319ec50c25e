"""How codes of 1 to 8 bits lie in bytes. Knows nothing of codebooks, ONNX or kernels.

A row of K codes is cut into blocks of 256 columns (the last one may be shorter). Inside a block of T columns the bits
of each code are split into planes, the most significant plane first, so that a prefix of the planes is a coarser code:

    bits   1    2    3      4    5      6      7         8
    planes [1]  [2]  [2,1]  [4]  [4,1]  [4,2]  [4,2,1]   [8]

A plane of p bits takes V = ceil(T * p / 8) bytes; byte j of it holds, from its low bits upwards, the fields of columns
j, j + V, j + 2V, ... So a vector register loaded from a plane yields, after one shift and one mask, consecutive
columns: 16 of them on NEON, 32 with AVX2, 64 with AVX-512, from the same bytes without any repacking.
"""

from __future__ import annotations

import numpy as np

BLOCK_COLUMNS = 256
PLANE_WIDTHS = (8, 4, 2, 1)


def planes(bits: int) -> tuple[int, ...]:
    """Plane widths for codes of `bits` bits (1 to 8), most significant plane first."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {bits}")
    return tuple(p for p in PLANE_WIDTHS if bits & p)


def row_bytes(columns: int, bits: int) -> int:
    """Bytes that one packed row of `columns` codes takes."""
    full, tail = divmod(columns, BLOCK_COLUMNS)
    return full * BLOCK_COLUMNS // 8 * bits + sum(-(-tail * p // 8) for p in planes(bits))


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes uint8 [N, K], each below 2**bits, into uint8 [N, row_bytes(K, bits)].

    Raises ValueError when a code does not fit in `bits` bits.
    """
    codes = np.ascontiguousarray(codes, dtype=np.uint8)
    if codes.ndim != 2:
        raise ValueError(f"codes must be a matrix, not {codes.ndim}-dimensional")
    if bits < 8 and codes.size and int(codes.max()) >> bits:
        raise ValueError(f"a code does not fit in {bits} bits")
    rows, columns = codes.shape
    out = np.empty((rows, row_bytes(columns, bits)), dtype=np.uint8)
    at = 0
    for start in range(0, columns, BLOCK_COLUMNS):
        block = codes[:, start : start + BLOCK_COLUMNS]
        remaining = bits
        for p in planes(bits):
            remaining -= p
            at += _pack_plane((block >> remaining) & ((1 << p) - 1), p, out[:, at:])
    return out


def _pack_plane(fields: np.ndarray, p: int, out: np.ndarray) -> int:
    rows, width = fields.shape
    size = -(-width * p // 8)
    per_byte = 8 // p
    padded = np.zeros((rows, size * per_byte), dtype=np.uint8)
    padded[:, :width] = fields
    shifts = (np.arange(per_byte, dtype=np.uint8) * p)[None, :, None]
    out[:, :size] = np.bitwise_or.reduce(padded.reshape(rows, per_byte, size) << shifts, axis=1)
    return size


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Inverse of pack: uint8 [N, row_bytes(columns, bits)] -> codes uint8 [N, columns]."""
    if packed.ndim != 2 or packed.shape[1] != row_bytes(columns, bits):
        raise ValueError(f"packed codes have shape {packed.shape}, expected [N, {row_bytes(columns, bits)}]")
    codes = np.zeros((packed.shape[0], columns), dtype=np.uint8)
    at = 0
    for start in range(0, columns, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, columns - start)
        block = codes[:, start : start + width]
        for p in planes(bits):
            size = -(-width * p // 8)
            plane = packed[:, at : at + size]
            fields = np.concatenate([(plane >> shift) & ((1 << p) - 1) for shift in range(0, 8, p)], axis=1)
            block[:] = (block << (p & 7)) | fields[:, :width]
            at += size
    return codes
