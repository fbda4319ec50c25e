"""Attention over pages: the kernels against the operator's slow reference, on caches of float16 and float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.sparse_attention import SparseLayout, page_means, seen_pages
from export.contract.pages import PAGE
from runtime_py.engine.kernels.attention import attend, pages, sparse_attend
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.layout import attention as sizes
from runtime_py.system.guard_pages import aligned_bytes


class Cache:
    """Some keys and values as the engine keeps them, with the mean of their whole pages."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, items: tuple[int, int]) -> None:
        """keys, values: float32 [total, kv_heads, head_dim]."""
        total, self.kv_heads, self.head_dim = keys.shape
        self.items, self.capacity = items, -(-total // 16) * 16
        self.key_block, width = sizes.key_block_numbers(self.head_dim, paged=True), sizes.value_width(self.head_dim)
        blocks = self.kv_heads * self.capacity // 16
        self.arrays = [aligned_bytes(item * blocks * n) for item, n in zip(items, (self.key_block, 16 * width))]
        for array in self.arrays:
            array[:] = 255  # NaN: what lies behind the last token must not matter
        self.keys, self.values = (array.ctypes.data for array in self.arrays)
        spare, overflow = np.zeros((self.kv_heads, self.head_dim), np.float32), np.zeros(2, np.int64)
        for p in range(total):
            append_token(
                spare.ctypes.data, keys[p].ctypes.data, values[p].ctypes.data, 0, 0, 0, self.keys, self.values, *items,
                self.key_block, self.capacity, 1, self.kv_heads, self.head_dim, p, overflow.ctypes.data,
            )  # fmt: skip
        for head, page in np.ndindex(self.kv_heads, total // PAGE):
            pages.put_page_mean(self.of_head(head) + items[0] * self.key_block * page, items[0], self.head_dim)

    def of_head(self, head: int) -> int:
        return self.keys + self.items[0] * self.key_block * head * (self.capacity // 16)

    def chosen(self, query: np.ndarray, position: int, layout: SparseLayout) -> np.ndarray:
        """int32 [kv_heads, 1 + pages] for queries float32 [heads, head_dim]."""
        lists = np.full((self.kv_heads, 1 + layout.pages), -1, np.int32)
        lines, repeat = np.zeros((2, self.capacity), np.float32), layout.heads // layout.kv_heads
        scratch = aligned_bytes(4 * (-(-self.head_dim // 16) * 16) + 1024)
        for head in range(self.kv_heads):
            pages.choose_pages(
                query[head * repeat :].ctypes.data, repeat, self.head_dim, np.float32(layout.scale), self.of_head(head),
                self.items[0], self.key_block, position, layout.pages, layout.first, layout.recent, lines.ctypes.data,
                4 * self.capacity, lists[head].ctypes.data, scratch.ctypes.data,
            )  # fmt: skip
        return lists

    def attended(self, query: np.ndarray, position: int, layout: SparseLayout, lists: np.ndarray) -> np.ndarray:
        """float32 [heads, head_dim]."""
        out = np.full((layout.heads, self.head_dim), np.nan, np.float32)
        scratch = aligned_bytes(sizes.scratch_bytes(self.head_dim))
        tiles = -(-layout.heads // layout.kv_heads // sizes.ROWS)
        for item in range(layout.kv_heads * tiles):
            sparse_attend.sparse_attend_item(
                item, query.ctypes.data, self.keys, self.values, *self.items, self.key_block, self.capacity,
                layout.heads, layout.kv_heads, self.head_dim, position, np.float32(layout.scale),
                np.float32(layout.softcap), lists.ctypes.data, 4 * lists.shape[1], out.ctypes.data, scratch.ctypes.data,
            )  # fmt: skip
        return out

    def densely(self, query: np.ndarray, position: int, layout: SparseLayout) -> np.ndarray:
        """The same over all keys."""
        out = np.full((layout.heads, self.head_dim), np.nan, np.float32)
        scratch, width = aligned_bytes(sizes.scratch_bytes(self.head_dim)), layout.heads * self.head_dim
        for item in range(layout.kv_heads * -(-layout.heads // layout.kv_heads // sizes.ROWS)):
            attend.attend_item(
                item, query.ctypes.data, width, self.keys, self.values, *self.items, self.key_block, self.capacity,
                layout.heads, layout.kv_heads, self.head_dim, position, 1, 0, np.float32(layout.scale),
                np.float32(layout.softcap), True, 0, out.ctypes.data, width, scratch.ctypes.data,
            )  # fmt: skip
        return out


def attention_over(query, cached, seen, layout):
    """float32 [heads, head_dim] of one token, in float64; cached: keys and values [kv_heads, total, head_dim]."""
    out = np.zeros(query.shape)
    for h in range(layout.heads):
        kv = h // (layout.heads // layout.kv_heads)
        keys, values = (a[kv, seen[kv]].astype(np.float64) for a in cached)
        scores = keys @ query[h].astype(np.float64) * layout.scale
        scores = layout.softcap * np.tanh(scores / layout.softcap) if layout.softcap else scores
        shares = np.exp(scores - scores.max())
        out[h] = shares / shares.sum() @ values
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 900), st.integers(1, 3), st.sampled_from([1, 3, 9]), st.sampled_from([8, 16, 24, 64, 80]),
    st.integers(3, 20), st.integers(0, 2), st.integers(1, 3), st.sampled_from([0.0, 3.0]),
    st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4])), st.integers(0, 2**31),
)  # fmt: skip
def test_like_the_reference(total, kv_heads, repeat, head_dim, most, first, recent, cap, items, seed):
    rng = np.random.default_rng(seed)
    heads, position = kv_heads * repeat, total - 1
    layout = SparseLayout(heads, kv_heads, head_dim, head_dim**-0.5, cap, max(most, first + recent), first, recent)
    query = (2 * rng.standard_normal((heads, head_dim))).astype(np.float32)
    keys, values = (rng.standard_normal((total, kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    cache = Cache(keys, values, items)
    lists = cache.chosen(query, position, layout)
    # what is cached is float16, also in a cache of float32
    halves = [a.astype(np.float16).astype(np.float32).transpose(1, 0, 2) for a in (keys, values)]
    means = page_means(halves[0]).astype(np.float16).astype(np.float32)
    seen = seen_pages(query.reshape(kv_heads, repeat, 1, head_dim), means, position, layout)[:, 0]
    for own, expected in zip(lists, seen):
        np.testing.assert_array_equal(own[1 : 1 + own[0]], np.flatnonzero(expected))
    expected = attention_over(query, halves, np.repeat(seen, PAGE, axis=1)[:, :total], layout)
    found = cache.attended(query, position, layout, lists)
    np.testing.assert_allclose(found.reshape(-1), expected.reshape(-1), atol=2e-5)  # as dense attention's test has it
    if len(seen[0]) <= layout.pages:
        np.testing.assert_array_equal(found, cache.densely(query, position, layout))


@pytest.mark.parametrize("item", [2, 4])
def test_equal_scores_go_to_the_earlier_page(item):
    """Keys that are all alike: the pages between the first and the last are taken from the front."""
    keys = np.ones((20 * PAGE, 1, 16), np.float32)
    cache, layout = Cache(keys, keys, (item, item)), SparseLayout(2, 1, 16, 1.0, 0.0, 6, 1, 2)
    lists = cache.chosen(np.ones((2, 16), np.float32), 20 * PAGE - 1, layout)
    assert lists[0].tolist() == [6, 0, 1, 2, 3, 18, 19]


def test_queries_that_are_not_finite_stay_in_their_lists():
    keys = np.random.default_rng(0).standard_normal((50 * PAGE, 2, 16)).astype(np.float32)
    cache, layout = Cache(keys, keys, (2, 2)), SparseLayout(4, 2, 16, 1.0, 0.0, 8, 1, 2)
    for wrong in (np.nan, np.inf, -np.inf):
        query = np.ones((4, 16), np.float32)
        query[1, 3] = wrong
        lists = cache.chosen(query, 50 * PAGE - 1, layout)
        for own in lists:
            count = own[0]
            assert count == layout.pages and (np.diff(own[1:]) > 0).all() and own[1] == 0 and own[count] == 49
