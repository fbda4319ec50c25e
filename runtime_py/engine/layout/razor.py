"""Razored activations, keys and values: sizes, and the numbers that say how they lie."""

from __future__ import annotations

import numpy as np

ROWS = 8  # query rows of one work item
# Bits of `form`, the SDR format as one number: see form_number().
WIDTH, BASIS, TWOS, EVEN = 0, 8, 16, 17


def form_number(width: int, basis: int, twos_complement: int, half_even: int) -> int:
    """An SDR format packed for the kernels."""
    return width << WIDTH | basis << BASIS | twos_complement << TWOS | half_even << EVEN


def flag_places(group: int) -> np.ndarray:
    """int32 [32]: by how much the flags of a segment's lanes are shifted, for an even and for an odd first flag."""
    lanes = 4 * np.arange(16) // group * 4
    return np.concatenate([lanes, lanes + 4]).astype(np.int32)


def largest_sums(each: np.ndarray, columns: np.ndarray, group: int) -> tuple[int, int]:
    """What kernels/razor_products.py adds up at most in 32 bits, and in all: whole numbers, of any size.

    Of each group of `group` columns: each, object [groups], the largest magnitude of one product; columns, how many are
    not zero. One token: lane l of 16 adds columns 4l..4l+3 of 64 in 2048. Several: a lane adds every column in 256.
    """
    most, wide = each * columns, max(256 // group, 1)
    several = [sum(most[i : i + wide]) for i in range(0, len(most), wide)]
    share = [own * min(4, int(some)) for own, some in zip(each, columns)]
    lanes: dict[tuple[int, int], int] = {}
    for column in range(0, len(most) * group, 4):
        key = column // 2048, column % 64 // 4
        lanes[key] = lanes.get(key, 0) + share[column // group]
    return int(max(*several, *lanes.values(), 0)), int(sum(most))


def groups_of(head_dim: int, group: int) -> int:
    return -(-head_dim // group)


def key_block_bytes(head_dim: int, group: int) -> int:
    """Bytes of 16 cached keys of one head."""
    return -(-head_dim // 8) * 64 + 8 * groups_of(head_dim, group)


def value_block_bytes(head_dim: int, group: int) -> int:
    """Bytes of 16 cached values of one head."""
    return -(-head_dim // 16) * 128 + 8 * groups_of(head_dim, group)


def scratch_bytes(head_dim: int) -> int:
    """Bytes of scratch memory one thread needs beside the scores: digits of queries, corrections, sums."""
    wide = -(-head_dim // 16) * 16
    return ROWS * (2 * wide + wide // 4 + 8 + 4 + 48 + 12 * wide) + 128
