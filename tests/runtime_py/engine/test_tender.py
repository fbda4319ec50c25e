"""Activations in channel groups on every instruction set, bit for bit against the operator's numpy reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.integers import IntegerLayout, sdr_matmul, sdr_sums
from export.contract.operators.tender import TenderFormat, channel_order, placed, tender_quantize
from export.contract.packing import pack
from runtime_py.engine.kernels.razor_products import TILE_ROWS, razor_rows
from runtime_py.engine.kernels.tender import tender_group_of_tokens, tender_token
from runtime_py.engine.layout import products as sizes
from runtime_py.engine.layout.razor import flag_places, largest_sums
from runtime_py.engine.plan.values import Razored
from runtime_py.engine.records.stored_matrix import RAW_WIDTH, matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available
from runtime_py.machine.widths import RAW, WIDTHS
from runtime_py.system.guard_pages import aligned_bytes, settled
from tests.runtime_py.engine.test_razor import all_items

NAMES = available()


def quantized(isa: str, x: np.ndarray, constants: tuple[np.ndarray, ...], form: TenderFormat):
    """Memory and addresses of the codes, as the work items of the loop write them."""
    order, middle, shifts, unit = constants
    (tokens, columns), places = x.shape, order.size
    made = Razored.of(places, form.group_size, tokens)
    memory, scratch = aligned_bytes(made.buffer.size), aligned_bytes(8192 + 128)
    at = [memory.ctypes.data + getattr(made, n).offset for n in ("codes", "sums", "shifts", "units")]
    steps = unit[0] * (2.0 ** shifts.astype(np.float32)).astype(np.float32)
    kept = [settled(a) for a in (order.astype(np.int64), middle, steps, shifts.astype(np.int32), x)]
    own = (places, form.group_size, np.float32(unit[0]), form.limit, *(a.ctypes.data for a in kept[:4]))
    head = (ISAS[isa], WEIGHT_OFFSET[isa], kept[4].ctypes.data)
    for b in range(-(-places // 256)):
        if tokens == 1:
            tender_token(*head, columns, *own, b, b + 1, *at, scratch.ctypes.data)
            continue
        for which in range(-(-tokens // 16)):
            tender_group_of_tokens(*head, columns, columns, *own, which, tokens, b, b + 1, *at, scratch.ctypes.data)
    return memory, at


def product(isa, x, constants, form, layout, parts):
    _memory, at = quantized(isa, x, constants, form)
    codes, book, flags, scale = parts
    record, _keep = matrix_record(layout.stored(), codes, book, scale)
    width = RAW if matrix_width(record) == RAW_WIDTH else WIDTHS[layout.bits]
    tokens, scratch = len(x), aligned_bytes(sizes.scratch_bytes(layout.K) + 4096)
    out = np.zeros((tokens, layout.N), np.float32)
    places = settled(flag_places(layout.group_size))
    padded = settled(np.concatenate([flags.reshape(-1), np.zeros(2, np.uint8)]))
    if tokens == 1:
        razor_rows(
            ISAS[isa], width, record.ctypes.data, 0, layout.N, *at, padded.ctypes.data, 0,
            layout.group_size.bit_length() - 1, places.ctypes.data, out.ctypes.data, 0, False, scratch.ctypes.data,
        )  # fmt: skip
    else:
        all_items(
            ISAS[isa], width, record.ctypes.data, -(-layout.N // TILE_ROWS), *at, padded.ctypes.data, 0,
            layout.group_size, tokens, out.ctypes.data, 0, False, scratch.ctypes.data,
        )  # fmt: skip
    return out


def matrix(rng, places: int, rows: int, bits: int, group: int):
    layout = IntegerLayout(bits, places, rows, group, rows_per_codebook=rows)
    limit = (1 << (bits - 1)) - 1
    book = np.minimum(np.arange(1 << bits) - limit, limit).astype(np.int8).reshape(1, 1, -1)
    codes = pack(rng.integers(0, (1 << bits) - 1, (rows, places)), bits)
    flags = np.zeros((1, -(-layout.groups // 2)), np.uint8)
    return layout, (codes, book, flags, rng.uniform(0.001, 0.01, (rows, 1)).astype(np.float32))


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=25)
@given(
    st.integers(1, 700), st.integers(1, 20), st.integers(1, 35), st.sampled_from([4, 8]), st.integers(2, 8),
    st.sampled_from([16, 64, 256]), st.integers(1, 8), st.integers(0, 2**31),
)  # fmt: skip
def test_product(isa, columns, rows, tokens, bits, width, group, groups, seed):
    rng = np.random.default_rng(seed)
    shifts = rng.integers(0, groups, columns)
    order, runs = channel_order(shifts, group)
    form, unit = TenderFormat(width, group), np.array([0.01], np.float32)
    spread = (0.01 * form.limit * 2.0**shifts).astype(np.float32)
    x = (rng.standard_normal((tokens, columns)) * spread).astype(np.float32)
    constants = order, placed((0.3 * rng.standard_normal(columns)).astype(np.float32), order), runs, unit
    layout, parts = matrix(rng, order.size, rows, bits, group)
    expected = sdr_matmul(*tender_quantize(x, *constants, form), layout, *parts)
    np.testing.assert_array_equal(product(isa, x, constants, form, layout, parts), expected)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_largest_sums_that_are_planned_are_exact(isa, tokens):
    """INT8 in 16 groups with every factor at its limit: as many channels above as 32 bits bear."""
    form, group = TenderFormat(8, 16), 16
    shifts = np.concatenate([np.full(1, 15), np.full(2, 13), np.full(9, 11), np.zeros(4000)]).astype(np.uint8)
    order, runs = channel_order(shifts, group)
    counts = (order.reshape(-1, group) >= 0).sum(axis=1)
    most = largest_sums(127 * 2 ** runs.astype(object), counts, group)
    assert 2**30 < most[0] * 127 < 2**31
    x = (127 * 2.0 ** np.repeat(shifts[None].astype(np.float32), tokens, axis=0)).astype(np.float32)
    constants = order, np.zeros(order.size, np.float32), runs, np.ones(1, np.float32)
    layout = IntegerLayout(8, order.size, 3, group, rows_per_codebook=3)
    parts = (
        np.full((3, order.size), 255, np.uint8),
        np.minimum(np.arange(256) - 127, 127).astype(np.int8).reshape(1, 1, -1),
        np.zeros((1, -(-runs.size // 2)), np.uint8), np.ones((3, 1), np.float32),
    )  # fmt: skip
    want = np.float32(int(most[1]) * 127)
    assert (product(isa, x, constants, form, layout, parts) == want).all()


def test_what_cannot_be_summed_in_32_bits_is_seen():
    """Bounds against every lane's real sum at the limits, one token and several."""
    rng = np.random.default_rng(0)
    for group in (16, 64, 256):
        shifts = rng.integers(0, 12, 900)
        order, runs = channel_order(shifts, group)
        there = order >= 0
        each = np.where(there, 127 * 2 ** np.repeat(runs.astype(np.int64), group), 0)
        most = largest_sums(127 * 2 ** runs.astype(object), there.reshape(-1, group).sum(axis=1), group)
        wide = np.concatenate([each, np.zeros(-each.size % 2048, np.int64)])
        lanes = wide.reshape(-1, 32, 16, 4).sum(axis=(1, 3)).max()
        several = wide.reshape(-1, 256).sum(axis=1).max()
        assert most[0] >= max(lanes, several) and most[1] == each.sum()


def test_the_sums_agree_with_the_accumulator():
    rng = np.random.default_rng(3)
    order, runs = channel_order(rng.integers(0, 4, 40), 16)
    layout, (codes, book, flags, _) = matrix(rng, order.size, 2, 4, 16)
    activations = rng.integers(-7, 8, (2, runs.size, 16))
    from export.contract.operators.integers import weight_integers
    from export.contract.operators.tender import shift_accumulate

    weights = weight_integers(layout, codes, book)
    shifts = np.broadcast_to(runs, (2, runs.size))
    np.testing.assert_array_equal(
        sdr_sums(layout, activations, shifts, weights, flags), shift_accumulate(activations, runs, weights)
    )
