"""The integer kernels on every instruction set, bit for bit against the operators' numpy references."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.contract.operators.attention import AttentionLayout, sdr_attention
from export.contract.operators.integers import IntegerLayout, format_attributes, sdr_matmul, sdr_quantize
from export.contract.packing import pack
from export.contract.sdr import (
    HALF_EVEN,
    HALF_UP,
    SIGN_MAGNITUDE,
    TWOS_COMPLEMENT,
    SdrFormat,
    code_table,
    pack_flags,
)
from runtime_py.engine.kernels.attention.razor_attend import razor_attend_item
from runtime_py.engine.kernels.attention.razor_kv_append import append_head
from runtime_py.engine.kernels.razor import razor_group_of_tokens, razor_token
from runtime_py.engine.kernels.razor_products import TILE_ROWS, razor_item, razor_rows
from runtime_py.engine.layout import products as sizes
from runtime_py.engine.layout import razor
from runtime_py.engine.layout.razor import flag_places
from runtime_py.engine.plan.values import Razored, form_of
from runtime_py.engine.records.stored_matrix import RAW_WIDTH, matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available
from runtime_py.machine.widths import RAW, WIDTHS
from runtime_py.reference.sdr import IntegerWeights, attend
from runtime_py.system.guard_pages import aligned_bytes, settled

NAMES = available()


@nb.njit
def all_items(
    isa, width, matrix, items, codes, sums, shifts, units, flags, stride, group, tokens, out, bias, accumulate, scratch
):
    for item in range(items):
        razor_item(
            isa, width, matrix, item, codes, sums, shifts, units, flags, stride, group, tokens, out, bias, accumulate,
            scratch,
        )  # fmt: skip


def quantized(isa: str, x: np.ndarray, form: SdrFormat, unit: float) -> tuple[np.ndarray, dict[str, int]]:
    """Memory and addresses of razored activations; unit 0: one for each token."""
    tokens, columns = x.shape
    made = Razored.of(columns, form.group_size, tokens)
    memory, scratch = aligned_bytes(made.buffer.size), aligned_bytes(4096 + 256)
    at = {n: memory.ctypes.data + getattr(made, n).offset for n in ("codes", "sums", "shifts", "units")}
    blocks, step = -(-columns // 256), np.float32(unit)
    head = (ISAS[isa], WEIGHT_OFFSET[isa], x.ctypes.data)
    tail = (at["codes"], at["sums"], at["shifts"], at["units"], scratch.ctypes.data)
    for b in range(blocks):  # as the work items of the loop
        if tokens == 1:
            razor_token(*head, columns, form.group_size, step, form_of(form), b, b + 1, *tail)
            continue
        for which in range(-(-tokens // 16)):
            razor_group_of_tokens(
                *head, columns, columns, form.group_size, step, form_of(form), which, tokens, b, b + 1, *tail
            )
    return memory, at


def product(isa, x, form, unit, layout, parts, bias=None, start=None):
    """The kernels' SdrMatMul of SdrQuantize."""
    codes, book, flags, scale = parts
    memory, at = quantized(isa, x, form, unit)
    record, keep = matrix_record(layout.stored(), codes, book, scale)
    width = RAW if matrix_width(record) == RAW_WIDTH else WIDTHS[layout.bits]
    tokens, columns = x.shape
    scratch = aligned_bytes(sizes.scratch_bytes(columns) + 4096)
    out = np.zeros((tokens, layout.N), np.float32) if start is None else start.copy()
    shift, places = 0 if bias is None else bias.ctypes.data, settled(flag_places(layout.group_size))
    padded = settled(np.concatenate([flags.reshape(-1), np.zeros(2, np.uint8)]))
    stride = flags.shape[1] if len(flags) == layout.N else 0
    places_at, flags_at, activations = (
        places.ctypes.data,
        padded.ctypes.data,
        [at[n] for n in ("codes", "sums", "shifts", "units")],
    )
    if tokens == 1:
        razor_rows(
            ISAS[isa], width, record.ctypes.data, 0, layout.N, *activations, flags_at, stride,
            layout.group_size.bit_length() - 1, places_at, out.ctypes.data, shift, start is not None,
            scratch.ctypes.data,
        )  # fmt: skip
    else:
        all_items(
            ISAS[isa], width, record.ctypes.data, -(-layout.N // TILE_ROWS), *activations, flags_at, stride,
            layout.group_size, tokens, out.ctypes.data, shift, start is not None, scratch.ctypes.data,
        )  # fmt: skip
    del keep, memory
    return out


FORMATS = st.builds(
    SdrFormat,
    basis=st.just(16),
    width=st.integers(2, 8),
    group_size=st.sampled_from([16, 32, 64, 128, 256]),
    variant=st.sampled_from([SIGN_MAGNITUDE, TWOS_COMPLEMENT]),
    ties=st.sampled_from([HALF_UP, HALF_EVEN]),
).filter(lambda form: form.lowest_code >= -127)  # the planner leaves the one format beyond it to the interpreter
COLUMNS = st.one_of(st.integers(1, 700), st.sampled_from([64, 172, 256, 512, 4352]))


def random_matrix(rng, rows: int, columns: int, group: int, razored: bool):
    """Razored weights of 4 bits, or int8 codebooks of 3."""
    if razored:
        form = SdrFormat(8, 4, group)
        layout = IntegerLayout(4, columns, rows, group, rows_per_codebook=rows)
        book, flags = code_table(form)[None, None], rng.integers(0, 5, (rows, layout.groups))
    else:
        layout = IntegerLayout(3, columns, rows, group, rows_per_codebook=3)
        book = rng.integers(-128, 128, layout.stored().codebook_shape).astype(np.int8)
        flags = np.zeros((1, layout.groups), np.uint8)
    codes = pack(rng.integers(0, 1 << layout.bits, (rows, columns)), layout.bits)
    scale = rng.uniform(0.001, 0.01, layout.stored().scale_shape).astype(np.float32)
    return layout, (codes, book, pack_flags(flags), scale)


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=25)
@given(FORMATS, COLUMNS, st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(0, 2**31))
@example(SdrFormat(16, 4, 16), 4352, 3, 1, True, False, 0)  # more than one whole-number part of a sum
@example(SdrFormat(16, 8, 128), 2304, 5, 17, False, True, 1)
def test_product(isa, form, columns, rows, tokens, razored, per_token, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((tokens, columns)) * np.exp(2 * rng.standard_normal((tokens, columns)))).astype(np.float32)
    layout, parts = random_matrix(rng, rows, columns, form.group_size, razored)
    unit = np.array([0.0 if per_token else np.abs(x).max() / 20000], np.float32)
    activations = sdr_quantize(x, np.maximum(unit, 1e-9), form, per_token)
    expected = sdr_matmul(*activations, layout, *parts)
    np.testing.assert_array_equal(product(isa, x, form, float(unit[0]), layout, parts), expected)
    bias, start = (rng.standard_normal(s).astype(np.float32) for s in (layout.N, (tokens, layout.N)))
    with_both = product(isa, x, form, float(unit[0]), layout, parts, bias, start)
    np.testing.assert_array_equal(with_both, expected + bias + start)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("tokens", [1, 2])
def test_the_largest_sums_are_exact(isa, tokens):
    """Every factor at its limit: 8192 columns of 127 * 127 << 8, beyond 32 bits in all."""
    form, columns = SdrFormat(16, 8, 256), 8192
    layout = IntegerLayout(1, columns, 5, 256)
    parts = (
        np.full((5, columns // 8), 255, np.uint8),
        np.full((5, 1, 2), 127, np.int8),
        np.zeros((1, 16), np.uint8),
        np.ones((5, 1), np.float32),
    )
    x = np.full((tokens, columns), 32767, np.float32)
    sums = float(np.float32(127 * (127 << 8) * columns))
    assert (product(isa, x, form, 1.0, layout, parts) == sums).all()


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from([8, 16, 32]), st.booleans(), st.integers(0, 2**31))
def test_the_interpreters_product(columns, rows, group, razored, seed):
    rng = np.random.default_rng(seed)
    layout, parts = random_matrix(rng, rows, columns, group, razored)
    x = rng.standard_normal((1, 3, columns)).astype(np.float32)
    activations = sdr_quantize(x, np.array([1e-4], np.float32), SdrFormat(16, 16, group), False)

    class Node:
        @staticmethod
        def integer_layout() -> IntegerLayout:
            return layout

    found = IntegerWeights(Node, *parts).product(*activations)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, sdr_matmul(*activations, layout, *parts))


@pytest.mark.parametrize("isa", NAMES)
@settings(max_examples=25)
@given(
    st.integers(1, 20), st.integers(0, 300), st.sampled_from([1, 2]), st.sampled_from([1, 3, 4, 9]),
    st.sampled_from([(8, 8), (16, 16), (20, 20), (48, 32), (64, 16), (64, 64), (72, 16)]),
    st.sampled_from([0, 1, 5, 100]),
    st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_attention(isa, tokens, past, kv_heads, repeat, shape, window, twos, even, seed):
    head_dim, group = shape
    form = SdrFormat(8, 4, group, TWOS_COMPLEMENT if twos else SIGN_MAGNITUDE, HALF_EVEN if even else HALF_UP)
    rng = np.random.default_rng(seed)
    heads, total = kv_heads * repeat, past + tokens
    attributes = {**format_attributes(form), "q_num_heads": heads, "kv_num_heads": kv_heads, "scale": 0.17}
    layout = AttentionLayout.of(attributes, heads * head_dim)
    q, k, v = (rng.standard_normal((1, total, n * head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    k *= np.exp(rng.standard_normal(k.shape[-1])).astype(np.float32)  # some channels are large, as in real keys
    units = [(np.abs(x).max() / 127 * rng.uniform(0.5, 1, kv_heads)).astype(np.float32) for x in (k, v)]
    capacity = -(-total // 16) * 16
    sizes = [f(head_dim, group) for f in (razor.key_block_bytes, razor.value_block_bytes)]
    cache = [aligned_bytes(kv_heads * capacity // 16 * size) for size in sizes]
    for part in cache:
        part[:] = rng.integers(0, 256, part.size)  # what lies behind the last token must not matter
    scratch, out = (
        aligned_bytes(razor.scratch_bytes(head_dim)),
        np.zeros((tokens, heads * head_dim), np.float32),
    )
    scores = aligned_bytes(4 * razor.ROWS * capacity)
    addresses = [a.ctypes.data for a in cache]
    for first, count in ((0, past), (past, tokens)):
        rows = [settled(x[0, first : first + count]) for x in (q, k, v)]
        for head in range(heads + kv_heads if count else 0):
            append_head(
                head, rows[0].ctypes.data, heads * head_dim, rows[1].ctypes.data, kv_heads * head_dim,
                rows[2].ctypes.data, kv_heads * head_dim, 0, 0, 0, *addresses, capacity, heads, head_dim, first, count,
                units[0].ctypes.data, units[1].ctypes.data, group, form_of(form), scratch.ctypes.data,
            )  # fmt: skip
    for item in range(kv_heads * -(-repeat * tokens // razor.ROWS)):
        razor_attend_item(
            ISAS[isa], item, rows[0].ctypes.data, heads * head_dim, *addresses, capacity, heads, kv_heads, head_dim,
            past, tokens, window, np.float32(0.17), np.float32(0.0), units[0].ctypes.data, units[1].ctypes.data, group,
            out.ctypes.data, heads * head_dim, scores.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
    ahead = np.arange(total) - past - np.arange(tokens)[:, None]
    mask = (ahead <= 0) & ((ahead > -window) if window else True)
    empty = np.zeros((1, kv_heads, 0, layout.row_bytes), np.uint8)
    spare = AttentionLayout.of(attributes, heads * head_dim)
    _, past_k, past_v = sdr_attention(
        q[:, :past], k[:, :past], v[:, :past], np.ones((1, 1, past, past), bool), empty, empty, *units, spare
    ) if past else (None, empty, empty)  # fmt: skip
    new = (q[:, past:], k[:, past:], v[:, past:])
    expected, _, _ = sdr_attention(*new, mask[None, None], past_k, past_v, *units, layout)
    np.testing.assert_array_equal(out, expected[0])
    plain, _, _ = attend(*new, mask, (past_k, past_v), (units[0], units[1]), layout)  # the interpreter's
    np.testing.assert_array_equal(plain, expected)
