"""Widths of codes as compile-time constants: each has kernels of its own (simd/codes.py)."""

from __future__ import annotations

from runtime_py.machine.isa import Tag

WIDTHS = {bits: Tag("bits", bits) for bits in range(1, 9)}
RAW = Tag("raw", 8)  # 8 bits whose codebook is -128..127 in order: the code is the weight plus 128, no lookup
TRELLIS = {bits: Tag("trellis", bits) for bits in range(1, 5)}  # codes that move a state on, which picks the level
# The same codes with levels that are sums, so that two tables of 16 take the place of one of 256.
HALVES = {bits: Tag("halves", bits) for bits in range(1, 5)}
PATHS = ("trellis", "halves")  # kinds whose codes move a state on
TRELLIS_STATE_BITS = 8
# Codes that are the weights themselves, but for a zero point, with a scale for each run of columns. The value of the
# tag: bits, log2 of the columns << 4, 1 << 8 where scales are float32.
GROUP_LOGS = (4, 5, 6, 7, 8)
HIGH_BYTES = 64  # where the high digits of a block begin, behind their places (simd/digits.py)


def group_tag(bits: int, log_group: int, wide: bool) -> Tag:
    """The width of group-scaled codes. wide: scales are float32, not float16."""
    return Tag("groups", bits | log_group << 4 | int(wide) << 8)
