"""A cache of float16 or float32 keys and values, and what attention over it needs (kernels/attention/attend.py)."""

from __future__ import annotations

ROWS = 8  # query rows of one work item
KEYS = 256  # keys per round of the online softmax
PAGE = 16  # positions of a page, as many as of a block (export/contract/pages.py)
HALF_ITEM, FLOAT_ITEM = 2, 4  # bytes of a cached number


def key_block_numbers(head_dim: int, paged: bool = False) -> int:
    """Numbers of a block of 16 cached keys of one head; paged: with their mean behind them."""
    return (16 + paged) * head_dim


def key_block_bytes(head_dim: int, paged: bool = False) -> int:
    """Bytes of a block of 16 cached keys of one head as float16."""
    return HALF_ITEM * key_block_numbers(head_dim, paged)


def value_block_bytes(head_dim: int) -> int:
    """Bytes of 16 cached values of one head as float16."""
    return 32 * value_width(head_dim)


def value_width(head_dim: int) -> int:
    """Floats of one cached value row, padded to whole vectors."""
    return -(-head_dim // 16) * 16


def scratch_bytes(head_dim: int) -> int:
    """Bytes of scratch memory one thread needs: queries, scores, sums, maxima and totals."""
    return 4 * (ROWS * head_dim + ROWS * KEYS + ROWS * value_width(head_dim) + 2 * 16) + 64
