"""What the bytes of a GGUF tensor stand for, and the codes of those types that are codes with a scale for each block.

The package `gguf` dequantizes; the layouts of the codes are those of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from export.contract.errors import InputError
from toolchain.source.gguf.header import GgufTensor

PLAIN = ("F32", "F16", "BF16")


class BlockCodes(NamedTuple):
    """A matrix [N, K] of blocks of neighbouring columns: the arguments of GroupCodes."""

    codes: np.ndarray  # uint8 [N, K]
    bits: int
    group_size: int
    scale: np.ndarray  # float32 [N, K / group_size]
    minimum: np.ndarray | None
    zero: int | None


def readable(tensor: GgufTensor) -> bool:
    """Whether the package can dequantize this type."""
    from gguf import quants

    return tensor.type in PLAIN or isinstance(getattr(quants, tensor.type, None), type)  # a class for each type


def values(tensor: GgufTensor) -> np.ndarray:
    """float32, in the tensor's shape."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # scales that are not finite are found in what comes out
        return dequantize(_rows(tensor), GGMLQuantizationType[tensor.type]).reshape(tensor.shape)


def codes(tensor: GgufTensor) -> BlockCodes | None:
    """The codes of a matrix; None for types that are not codes with one scale for each block."""
    layout = _LAYOUTS.get(tensor.type)
    if layout is None or len(tensor.shape) != 2:
        return None
    rows, columns = tensor.shape
    raw = _rows(tensor)
    blocks = raw.reshape(-1, tensor.bytes * layout.size // (rows * columns))
    halves = blocks[:, layout.scale : layout.scale + 2].copy().view(np.float16).astype(np.float32)
    minimum = None
    if layout.zero is None:
        minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32).reshape(rows, -1)
    found = layout.unpack(blocks).reshape(rows, columns)
    return BlockCodes(found, layout.bits, layout.size, halves.reshape(rows, -1), minimum, layout.zero)


def _rows(tensor: GgufTensor) -> np.ndarray:
    """The bytes, uint8 [all axes but the last, bytes of a row], read from the file."""
    try:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            data = np.fromfile(file, np.uint8, tensor.bytes)
    except OSError as error:
        raise InputError(f"{tensor.path}: cannot be read ({error.strerror or error})") from None
    if data.size != tensor.bytes:
        raise InputError(f"{tensor.path}: has become shorter while it was read")
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    return data.reshape(*tensor.shape[:-1], tensor.bytes // rows)


class _Layout(NamedTuple):
    bits: int
    size: int  # columns of a block
    scale: int  # offset of the float16 scale in the block
    zero: int | None  # the code that stands for 0; None where a float16 minimum follows the scale
    unpack: Callable[[np.ndarray], np.ndarray]  # uint8 [blocks, bytes] to uint8 [blocks, columns]


def _nibbles(data: np.ndarray) -> np.ndarray:
    """16 bytes: the low halves are the first 16 codes."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _fives(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """4 bytes with the fifth bit of each of 32 codes, in order, and 16 with the others."""
    return _nibbles(low) | (np.unpackbits(high, axis=1, bitorder="little") << 4)


def _ternary(blocks: np.ndarray) -> np.ndarray:
    """Five digits a byte (the last four bytes: four) as a fraction of 256: times 3 ** i, times 3, and its floor."""
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    parts = [(blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)]
    digits = [(part[:, None, :] * powers[:count]).reshape(len(blocks), -1) for part, count in parts]
    return ((np.concatenate(digits, axis=1).astype(np.uint16) * 3) >> 8).astype(np.uint8)


def _pairs(data: np.ndarray) -> np.ndarray:
    """Runs of 32 bytes with 2 bits for each of 4 times 32 codes."""
    runs = data.reshape(len(data), -1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (runs & 3).reshape(len(data), -1)


_LAYOUTS = {
    "Q4_0": _Layout(4, 32, 0, 8, lambda b: _nibbles(b[:, 2:])),
    "Q4_1": _Layout(4, 32, 0, None, lambda b: _nibbles(b[:, 4:])),
    "Q5_0": _Layout(5, 32, 0, 16, lambda b: _fives(b[:, 2:6], b[:, 6:])),
    "Q5_1": _Layout(5, 32, 0, None, lambda b: _fives(b[:, 4:8], b[:, 8:])),
    "Q8_0": _Layout(8, 32, 0, 128, lambda b: b[:, 2:] ^ np.uint8(128)),  # int8 + 128
    "TQ1_0": _Layout(2, 256, 52, 1, _ternary),
    "TQ2_0": _Layout(2, 256, 64, 1, lambda b: _pairs(b[:, :64])),
}
