"""Products: widths, scratch memory, tiles of rows, and how activations lie (kernels/matmul.py, quantize.py)."""

from __future__ import annotations

from runtime_py.engine.records.stored_matrix import GROUPS_WIDTH, HALVES_WIDTH, RAW_WIDTH, TRELLIS_WIDTH
from runtime_py.machine.isa import AMX_ROWS, TILE, Tag
from runtime_py.machine.widths import HALVES, HIGH_BYTES, RAW, TRELLIS, WIDTHS

MOST_TOKENS = 16  # of several texts that are multiplied together
HIGH_TOKEN, HIGH_GROUP = HIGH_BYTES + 256, HIGH_BYTES + 4096  # bytes of the high digits of a block
MAX_ROWS = 32  # of any register tile
_SPILL = 4096
# Scratch of one thread: sums, their transpose, scales, biases, AMX spill; then the decoded rows
# [MAX_ROWS, columns], an unpacked block and the states of trellis codes [columns].
TOTALS, TURNED, SCALES, BIASES, SPILL, SCRATCH_BYTES = 0, 4096, 6144, 6272, 6400, 6400 + _SPILL


def width_tag(number: int) -> Tag:
    """The compile-time constant of a width."""
    if number >= GROUPS_WIDTH:
        return Tag("groups", number - GROUPS_WIDTH)
    if number > HALVES_WIDTH:
        return HALVES[number - HALVES_WIDTH]
    if number > TRELLIS_WIDTH:
        return TRELLIS[number - TRELLIS_WIDTH]
    return RAW if number == RAW_WIDTH else WIDTHS[number]


def padded(columns: int) -> int:
    """Columns rounded up to a whole vector of bytes."""
    return -(-columns // 64) * 64


def scratch_bytes(columns: int) -> int:
    """Bytes of scratch memory one thread needs for matrices of up to `columns` columns."""
    return SCRATCH_BYTES + (MAX_ROWS + 1) * padded(columns) + 256


def tile_shape(isa: str, amx: bool) -> tuple[int, int]:
    """(rows, vectors of 16 tokens) of the register tile."""
    return (AMX_ROWS, 2) if amx else TILE[isa]
