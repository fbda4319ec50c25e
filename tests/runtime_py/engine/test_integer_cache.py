"""A cache of integer codes: what is stored, attention over it, and whole models with it."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.engine.kernels.attention import integer_attend
from runtime_py.engine.kernels.attention.integer_append import integer_append_head
from runtime_py.engine.kernels.attention.integer_cache import rotate_codes
from runtime_py.engine.layout import integer_cache
from runtime_py.engine.layout.attention import ROWS
from runtime_py.engine.layout.integer_cache import block_bytes
from runtime_py.machine.isa import ISAS, available
from runtime_py.system.guard_pages import aligned_bytes
from tests.runtime_py.engine.integer_cache_reference import rotated, rotation, stored
from tests.runtime_py.engine.test_engine import reference_attention

_DIMS = st.sampled_from([8, 16, 20, 24, 64, 80, 128])


@nb.njit
def append_all(keys, values, cache, other, bits, capacity, kv_heads, head_dim, first, count, scratch):
    """All heads of `count` tokens from position `first` on; keys, values: float32 [tokens, kv_heads * head_dim]."""
    for h in range(kv_heads):
        for p in range(first, first + count):
            at = 4 * p * kv_heads * head_dim
            integer_append_head(
                h, 0, keys + at, values + at, 0, 0, 0, cache, other, bits, capacity, 0, head_dim, p, p == first, scratch
            )


def cached(keys, values, capacity, bits):
    """The two caches that the kernel writes; what was there before is garbage."""
    count, kv_heads, head_dim = keys.shape
    size = block_bytes(head_dim, bits)
    caches = [aligned_bytes(kv_heads * capacity // 16 * size) for _ in range(2)]
    for cache in caches:
        cache[:] = 255  # float32 NaN where scales are
    scratch = aligned_bytes(9 * (head_dim + 16) + 64)
    append_all(
        keys.ctypes.data, values.ctypes.data, *(c.ctypes.data for c in caches), bits, capacity, kv_heads, head_dim, 0,
        count, scratch.ctypes.data,
    )  # fmt: skip
    return [cache.reshape(kv_heads, capacity // 16, size) for cache in caches]


def attended(isa, bits, query, caches, capacity, past, window, scale, cap, sinks):
    tokens, heads, head_dim = query.shape
    kv_heads = len(caches[0])
    out = np.zeros((tokens, heads * head_dim), np.float32)
    scratch = aligned_bytes(integer_cache.scratch_bytes(head_dim))
    for item in range(kv_heads * -(-heads // kv_heads * tokens // ROWS)):
        integer_attend.integer_attend_item(
            ISAS[isa], bits, item, query.ctypes.data, heads * head_dim, caches[0].ctypes.data, caches[1].ctypes.data,
            capacity, heads, kv_heads, head_dim, past, tokens, window, np.float32(scale), np.float32(cap),
            0 if sinks is None else sinks.ctypes.data, out.ctypes.data, heads * head_dim, scratch.ctypes.data,
        )  # fmt: skip
    return out


@given(_DIMS, st.integers(0, 2**31))
def test_the_rotation_is_orthogonal_and_its_own_inverse(head_dim, seed):
    x = np.random.default_rng(seed).standard_normal(head_dim).astype(np.float32)
    row = aligned_bytes(4 * (-(-head_dim // 16) * 16)).view(np.float32)
    row[:head_dim] = x
    rotate_codes(row.ctypes.data, head_dim)
    np.testing.assert_array_equal(row[:head_dim], rotated(x))
    np.testing.assert_allclose(row[:head_dim], x.astype(np.float64) @ rotation(head_dim), atol=1e-5)  # float32 sums
    assert not row[head_dim:].any()
    rotate_codes(row.ctypes.data, head_dim)
    np.testing.assert_allclose(row[:head_dim], x, atol=1e-5)


@settings(max_examples=60)
@given(
    st.sampled_from([8, 4]), st.integers(1, 40), st.integers(1, 3), _DIMS, st.sampled_from([1.0, 1e-34, 1e30]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_codes_and_where_they_lie(bits, count, kv_heads, head_dim, size, seed):
    rng = np.random.default_rng(seed)
    shape = (count, kv_heads, head_dim)
    keys, values = ((size * rng.standard_t(2, shape)).astype(np.float32) for _ in range(2))
    capacity = 48
    for found, rows, which in zip(cached(keys, values, capacity, bits), (keys, values), (False, True)):
        expected, meant = stored(rows, capacity, bits, which)
        whole = count // 16  # of the last block some bytes are nobody's
        np.testing.assert_array_equal(found[:, :whole], expected[:, :whole])
        kept = np.einsum("phd,de->phe", rows.astype(np.float64), rotation(head_dim))
        center = np.zeros_like(kept[:1])  # of the keys of 4 bits, as they are kept
        if bits == 4 and not which and count > 16:
            center = meant[1:16].mean(axis=0, keepdims=True)
        top = np.abs(kept - center).max(axis=2, keepdims=True)
        top[:16] = np.abs(kept[:16]).max(axis=2, keepdims=True)
        step = top / 127 if bits == 8 else top / 7.5
        assert (np.abs(meant - kept) <= step * (0.5001 if bits == 8 else 1.6) + 1e-29).all()  # 4 bits may cut off


@settings(max_examples=80)
@given(
    st.sampled_from([8, 4]), st.integers(1, 40), st.integers(0, 600), st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3, 4, 7, 9]), _DIMS, st.sampled_from([0, 1, 5, 100, 300]), st.sampled_from([0.0, 2.5]),
    st.sampled_from([None, 1.0, 200.0]), st.integers(0, 2**31),
)  # fmt: skip
def test_attention(bits, tokens, past, kv_heads, repeat, head_dim, window, cap, spread, seed):
    rng = np.random.default_rng(seed)
    heads, total = kv_heads * repeat, past + tokens
    capacity = -(-total // 16) * 16
    query = rng.standard_normal((tokens, heads, head_dim)).astype(np.float32)
    keys, values = (rng.standard_normal((total, kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    sinks = None if spread is None else (spread * rng.standard_normal(heads)).astype(np.float32)
    caches, scale = cached(keys, values, capacity, bits), head_dim**-0.5
    out = attended(available()[0], bits, query, caches, capacity, past, window, scale, cap, sinks)
    turn = rotation(head_dim)
    meant = [stored(rows, capacity, bits, which)[1] for rows, which in ((keys, False), (values, True))]
    wide = None if sinks is None else sinks.astype(np.float64)
    expected = reference_attention(query @ turn, *meant, past, window, float(np.float32(scale)), cap, True, wide)
    expected = (expected.reshape(tokens, heads, head_dim) @ turn).reshape(tokens, -1)
    # a query's integers are off by 1 / 65,024 of its largest number, a weight by 1 / 32,766 of a round's largest
    np.testing.assert_allclose(out, expected, atol=2e-3)
    alone = np.concatenate(
        [
            attended(available()[0], bits, query[t : t + 1], caches, capacity, past + t, window, scale, cap, sinks)
            for t in range(tokens)
        ]
    )
    np.testing.assert_array_equal(out, alone)  # whatever passes beside it


@pytest.mark.parametrize("isa", available()[1:])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_instruction_set_gives_the_same_bits(isa, bits):
    rng = np.random.default_rng(bits)
    for tokens, repeat, head_dim, window in ((1, 1, 64, 0), (1, 3, 20, 0), (2, 3, 128, 100), (9, 1, 16, 0)):
        query = rng.standard_normal((tokens, 2 * repeat, head_dim)).astype(np.float32)
        keys, values = (rng.standard_normal((300, 2, head_dim)).astype(np.float32) for _ in range(2))
        keys[:, :, 3] *= 30
        caches = cached(keys, values, 304, bits)
        found = [
            attended(name, bits, query, caches, 304, 300 - tokens, window, 0.1, 0.0, None)
            for name in (available()[0], isa)
        ]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["query", "keys", "values"])
def test_what_is_no_number_reaches_the_result(bits, wrong, place):
    rng = np.random.default_rng(0)
    arrays = {"query": rng.standard_normal((1, 2, 24)), "keys": rng.standard_normal((5, 1, 24))}
    arrays = {name: a.astype(np.float32) for name, a in {**arrays, "values": rng.standard_normal((5, 1, 24))}.items()}
    arrays[place][0, 0, 17] = wrong
    caches = cached(arrays["keys"], arrays["values"], 16, bits)
    out = attended(available()[0], bits, arrays["query"], caches, 16, 4, 0, 0.2, 0.0, None)
    assert not np.isfinite(out[0, :24]).all()
