"""SparseAttention: causal attention in which every query reads a fixed number of pages of the cached keys.

SparseAttention(Q, K, V, mask, past_key, past_value) -> Y, present_key, present_value
    Q, K, V               float32 [batch, T, heads * D], keys and values [batch, T, kv_heads * D]
    mask                  bool [batch, 1, T, total], False hides a key; those behind the query are hidden anyway
    past_key, past_value  float32 [batch, kv_heads, past, D]; present_*: the same with the new tokens behind
Attributes: q_num_heads, kv_num_heads, scale, softcap (0 for none), pages, first, recent.

A page is PAGE positions of the cache, counted from its first. A query at position p of the cache, in page c = p / PAGE,
attends to at most `pages` pages: the first `first` ones, the last `recent` ones up to c, and of those between them the
ones of the highest score. All are whole by then, so a query's pages depend on nothing behind it. Heads that share keys
share the choice, so that a page is read once.

Score of a page: for each head, the product of the query with the mean of the page's keys (as MoBA has it, arXiv
2502.13189, section 2.2), a softmax of that over the pages that there are to choose from, and the sum of it over the
heads that share keys. Of equal scores the earlier page is taken.

The body reads all keys: standard operators cannot skip any. The engine (runtime_py/engine/kernels/attention/) keeps the
mean beside the keys of a page and reads no other page. A query that sees no key is not defined, as in standard
Attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import one_dimension
from export.contract.formats.base import DOMAIN, OPSET
from export.contract.pages import MOST_PAGES, PAGE

if TYPE_CHECKING:
    import onnx

SPARSE_ATTENTION = "SparseAttention"
_INPUTS = ("Q", "K", "V", "mask", "past_key", "past_value")
_ATTRIBUTES = ("q_num_heads", "kv_num_heads", "scale", "softcap", "pages", "first", "recent")
_LOWEST = float(np.finfo(np.float32).min)
_ALWAYS = 1e9  # a score above every sum of softmaxes


@dataclass(frozen=True)
class SparseLayout:
    """What the attributes and the width of the queries say."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    pages: int
    first: int
    recent: int

    @staticmethod
    def of(attributes: Mapping[str, Any], query_width: int) -> SparseLayout:
        """Raises KeyError, TypeError or ValueError when the attributes do not fit."""
        whole = [attributes[name] for name in ("q_num_heads", "kv_num_heads", "pages", "first", "recent")]
        if any(type(number) is not int for number in whole):
            raise ValueError("a number that is no integer")
        heads, kv_heads, pages, first, recent = whole
        if min(heads, kv_heads) < 1 or heads % kv_heads:
            raise ValueError(f"{heads} heads do not share {kv_heads} key-value heads")
        if query_width < heads or query_width % heads:
            raise ValueError(f"queries of width {query_width} do not split into {heads} heads")
        if first < 0 or recent < 1 or not first + recent <= pages <= MOST_PAGES:
            raise ValueError(f"{first} first and {recent} recent pages do not fit {pages} pages")
        scale, softcap = float(attributes["scale"]), float(attributes.get("softcap", 0.0))
        if not (np.isfinite(scale) and np.isfinite(softcap) and softcap >= 0):
            raise ValueError(f"scale {scale} and soft cap {softcap}")
        return SparseLayout(heads, kv_heads, query_width // heads, scale, softcap, pages, first, recent)

    @property
    def keys(self) -> int:
        """Most keys that a query reads; up to as many positions, attention is dense."""
        return PAGE * self.pages


def page_means(keys: np.ndarray) -> np.ndarray:
    """float32 [kv_heads, whole pages, D], the mean of each page's keys, float32 [kv_heads, total, D]."""
    kv_heads, total, head_dim = keys.shape
    pages = keys[:, : total // PAGE * PAGE].reshape(kv_heads, total // PAGE, PAGE, head_dim)
    means: np.ndarray = pages.mean(axis=2)
    return means


def seen_pages(query: np.ndarray, means: np.ndarray, past: int, layout: SparseLayout) -> np.ndarray:
    """bool [kv_heads, T, pages of the cache]: what each query reads.

    query: float32 [kv_heads, heads / kv_heads, T, D]. means: of all pages that are whole. Query by query, slowly.
    """
    kv_heads, repeat, tokens, _ = query.shape
    found = np.zeros((kv_heads, tokens, -(-(past + tokens) // PAGE)), bool)
    for kv, t in np.ndindex(kv_heads, tokens):
        own = (past + t) // PAGE
        middle = np.arange(layout.first, max(own - layout.recent + 1, layout.first))
        found[kv, t, : min(layout.first, own + 1)] = True
        found[kv, t, max(own - layout.recent + 1, 0) : own + 1] = True
        if len(middle) == 0:
            continue
        scores = np.zeros(len(middle), np.float32)
        for r in range(repeat):
            product = means[kv, middle] @ (query[kv, r, t] * np.float32(layout.scale))
            power = np.exp(product - product.max())
            scores += power / power.sum()
        chosen = np.argsort(-scores, kind="stable")[: layout.pages - layout.first - layout.recent]
        found[kv, t, middle[chosen]] = True
    return found


def sparse_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, past_key: np.ndarray,
    past_value: np.ndarray, layout: SparseLayout,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Reference of SparseAttention: (Y float32 [batch, T, heads * D], present_key, present_value)."""
    batch, tokens, _ = query.shape
    kv, repeat, past = layout.kv_heads, layout.heads // layout.kv_heads, past_key.shape[2]
    split = (batch, tokens, kv, layout.head_dim)
    keys = np.concatenate([past_key, key.reshape(split).transpose(0, 2, 1, 3)], axis=2)
    values = np.concatenate([past_value, value.reshape(split).transpose(0, 2, 1, 3)], axis=2)
    q = query.reshape(batch, tokens, kv, repeat, layout.head_dim).transpose(0, 2, 3, 1, 4)
    pages = np.stack([seen_pages(q[b], page_means(keys[b]), past, layout) for b in range(batch)])
    causal = np.arange(past + tokens) <= np.arange(past, past + tokens)[:, None]
    seen = np.repeat(pages, PAGE, axis=3)[..., : past + tokens] & mask & causal
    scores = q @ keys[:, :, None].transpose(0, 1, 2, 4, 3) * np.float32(layout.scale)
    if layout.softcap > 0:
        scores = np.float32(layout.softcap) * np.tanh(scores / np.float32(layout.softcap))
    scores = np.where(seen[:, :, None], scores, np.float32(_LOWEST))
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = powers @ values[:, :, None] / powers.sum(axis=-1, keepdims=True)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, -1).astype(np.float32), keys, values


def _page_scores(b: Body, q: Value, keys: Value, between: Value, count: Value) -> Value:
    """float32 [batch, kv, T, pages] from queries [batch, kv, repeat, T, D] and whole pages of keys.

    between: bool [T, pages], which there are to choose from; count: int64 [1], pages.
    """
    head_dim = b.Shape(keys, start=3, end=4)
    missing = count * PAGE - b.Shape(keys, start=2, end=3)
    whole = b.Pad(keys, b.Concat([0, 0, 0, 0, 0, 0], missing, [0], axis=0))
    shape = b.Concat(b.Shape(keys, start=0, end=2), count, [PAGE], head_dim, axis=0)
    means = b.ReduceMean(b.Reshape(whole, shape), [3], keepdims=0, name="page_mean")
    product = b.MatMul(q, b.Unsqueeze(b.Transpose(means, perm=[0, 1, 3, 2]), [2]))
    share = b.Softmax(b.Where(between, product, _LOWEST), axis=-1)
    return b.ReduceSum(share, [2], keepdims=0, name="page_score")


def _seen(b: Body, q: Value, keys: Value, total: Value, tokens: Value) -> Value:
    """bool [batch, kv, 1, T, total], the keys of the pages that each query reads."""
    count = (total + (PAGE - 1)) // [PAGE]
    page = b.Range(0, b.Squeeze(count, [0]), 1)
    position = b.Range(b.Squeeze(total - tokens, [0]), b.Squeeze(total, [0]), 1)
    own = b.Unsqueeze(position // PAGE, [1], name="own_page")
    lately = b.Greater(page, own - b.attribute("recent"))
    ahead = b.Greater(page, own)
    always = b.Or(b.Less(page, b.attribute("first")), lately)
    score = _page_scores(b, q, keys, b.Not(b.Or(always, ahead)), count)
    ranked = b.Where(ahead, -1.0, b.Where(always, _ALWAYS, score))
    most = b.Min(count, b.Reshape(b.attribute("pages"), [1]))
    _, chosen = b.several("TopK", 2, ranked, most, axis=-1)
    zeros = b.Expand(b.constant(0, "uint8"), b.Shape(ranked))
    ones = b.Expand(b.constant(1, "uint8"), b.Shape(chosen))
    taken = b.ScatterElements(zeros, chosen, ones, axis=-1)
    key = b.Range(0, b.Squeeze(total, [0]), 1)
    causal = b.LessOrEqual(key, b.Unsqueeze(position, [1]))
    return b.Unsqueeze(b.And(b.Gather(taken, key // PAGE, axis=3).astype("bool"), causal), [2])


def _write(
    b: Body, query: Value, key: Value, value: Value, mask: Value, past_key: Value, past_value: Value
) -> tuple[Value, ...]:
    heads, kv = b.attribute("q_num_heads"), b.attribute("kv_num_heads")
    repeat, cap = heads // kv, b.float_attribute("softcap")
    by_head = one_dimension(b, [0], [0], kv, [-1])
    keys = b.Concat(past_key, b.Transpose(b.Reshape(key, by_head), perm=[0, 2, 1, 3]), axis=2)
    values = b.Concat(past_value, b.Transpose(b.Reshape(value, by_head), perm=[0, 2, 1, 3]), axis=2)
    scaled = query * b.float_attribute("scale")
    q = b.Transpose(b.Reshape(scaled, one_dimension(b, [0], [0], kv, repeat, [-1])), perm=[0, 2, 3, 1, 4])
    total, tokens = b.Shape(keys, start=2, end=3), b.Shape(query, start=1, end=2)
    seen = b.And(_seen(b, q, keys, total, tokens), b.Unsqueeze(mask, [2]), name="seen")
    products = b.MatMul(q, b.Transpose(b.Unsqueeze(keys, [2]), perm=[0, 1, 2, 4, 3]), name="products")
    some_cap = b.Where(b.Greater(cap, 0.0), cap, 1.0)
    capped = b.Where(b.Greater(cap, 0.0), b.Tanh(products / some_cap) * some_cap, products)
    shares = b.Softmax(b.Where(seen, capped, _LOWEST), axis=-1, name="shares")
    mixed = b.MatMul(shares, b.Unsqueeze(values, [2]), name="mixed")
    return b.Reshape(b.Transpose(mixed, perm=[0, 3, 1, 2, 4]), [0, 0, -1]), keys, values


@cache
def sparse_attention_function() -> onnx.FunctionProto:
    """FunctionProto of SparseAttention."""
    outputs = ("Y", "present_key", "present_value")
    return function_proto(DOMAIN, OPSET, SPARSE_ATTENTION, _INPUTS, _ATTRIBUTES, _write, outputs)
