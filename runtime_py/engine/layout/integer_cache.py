"""A cache of integer codes (kernels/attention/integer_cache.py): sizes."""

from __future__ import annotations

from runtime_py.engine.layout.attention import KEYS, ROWS

CACHE_BITS = (8, 4)
SCALE_BYTES = 64  # of a block
WIDEST = 512  # dimensions of a head, so that 32 bits hold every sum of products


def block_bytes(head_dim: int, bits: int) -> int:
    """Bytes of 16 cached keys, or values, of one head."""
    return 2 * bits * (-(-head_dim // 16) * 16) + SCALE_BYTES


def scratch_bytes(head_dim: int) -> int:
    """Bytes of scratch memory one thread needs: digits, scores, weights, sums, and a few numbers of each row."""
    wide = -(-head_dim // 16) * 16
    return ROWS * (2 * wide + 4 * KEYS + 2 * KEYS + 4 * wide) + 8 * wide + 6 * 64
