"""SdrAttention: attention over a razored key-value cache, integers from the queries to the mixed values.

SdrAttention(Q, K, V, mask, past_key, past_value, key_unit, value_unit) -> Y, present_key, present_value
    Q, K, V               float32 [batch, T, heads * D], keys and values [batch, T, kv_heads * D]
    mask                  bool [batch, 1, T, total], True where a query sees a key
    past_key, past_value  uint8 [batch, kv_heads, past, row_bytes]; present_*: the same with the new tokens behind
    key_unit, value_unit  float32 [1] or [kv_heads]: what one step of the integers is worth
Attributes: q_num_heads, kv_num_heads, scale (of the scores), softcap, and the SDR format of the cache.

A cached row is D codes plus 2**(width-1), 8 / width of them a byte, the earlier in the low bits, then the flags of its
groups, two a byte. Groups run along D, so that tokens can be appended; a group never reaches beyond one head.

Arithmetic. Queries become integers of 16 bits, not razored, with a unit per token and head (two signed bytes, so
|q| <= 32639). A score is sum over groups of (sum q ck) << fk. Probabilities are 2**-z of the distance z to the highest
score, in steps of 2**-12, by a cubic in integers: 16 bits, highest 32767. A mixed value is sum_t (p_t << fv) cv and is
divided by sum_t p_t. QRazor keeps queries and probabilities at 16 bits, too (arXiv 2501.13331; its scripts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.contract.operators.integers import format_of
from export.contract.sdr import SdrFormat, pack_flags, razor, to_integers, unpack_flags

QUERY_LIMIT = 32639  # 127 * 256 + 127
EXPONENT_BITS = 12  # of the fraction of z
EXPONENT_LIMIT = 16 << EXPONENT_BITS  # beyond it the probability is zero
LOG2E_STEPS = np.float32(math.log2(math.e) * (1 << EXPONENT_BITS))
# 2**-t = A0 - t (A1 - t (A2 - t A3)) for 0 <= t < 1, in units of 1/32767; largest relative error 1.4e-4.
POWER = (32767, 22656, 7554, 1283)


@dataclass(frozen=True)
class AttentionLayout:
    """What the attributes and the width of the queries say."""

    heads: int
    kv_heads: int
    head_dim: int
    form: SdrFormat  # group_size at most head_dim
    scale: float
    softcap: float = 0.0

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not share {self.kv_heads} key-value heads")
        if self.form.width not in (4, 8) or self.form.basis > 8 or self.head_dim % self.codes_per_byte:
            raise ValueError(f"a cache of width {self.form.width} and basis {self.form.basis} is not supported")

    @staticmethod
    def of(attributes: Mapping[str, Any], query_width: int) -> AttentionLayout:
        """Raises KeyError, TypeError or ValueError when the attributes do not fit."""
        heads, kv_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
        if type(heads) is not int or type(kv_heads) is not int or heads < 1 or query_width % heads:
            raise ValueError(f"queries of width {query_width} do not split into {heads!r} heads")
        form, head_dim = format_of(attributes), query_width // heads
        form = replace(form, group_size=min(form.group_size, head_dim))
        cap = float(attributes.get("softcap", 0.0))
        return AttentionLayout(heads, kv_heads, head_dim, form, float(attributes["scale"]), cap)

    @property
    def codes_per_byte(self) -> int:
        return 8 // self.form.width

    @property
    def groups(self) -> int:
        return self.form.groups(self.head_dim)

    @property
    def code_bytes(self) -> int:
        return self.head_dim // self.codes_per_byte

    @property
    def row_bytes(self) -> int:
        """Bytes of one cached key or value of one head."""
        return self.code_bytes + -(-self.groups // 2)


def pack_rows(codes: np.ndarray, flags: np.ndarray, layout: AttentionLayout) -> np.ndarray:
    """Codes [..., D] and flags [..., G] as cached rows: uint8 [..., row_bytes]."""
    unsigned = (codes.astype(np.int64) + (1 << (layout.form.width - 1))).astype(np.uint8)
    parts = unsigned.reshape(*codes.shape[:-1], layout.code_bytes, layout.codes_per_byte)
    shifts = np.arange(layout.codes_per_byte, dtype=np.uint8) * layout.form.width
    packed = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return np.concatenate([packed, pack_flags(flags)], axis=-1)


def unpack_rows(rows: np.ndarray, layout: AttentionLayout) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of pack_rows: codes int64 [..., D] and flags uint8 [..., G]."""
    shifts = np.arange(layout.codes_per_byte, dtype=np.uint8) * layout.form.width
    parts = (rows[..., : layout.code_bytes, None] >> shifts) & ((1 << layout.form.width) - 1)
    codes = parts.reshape(*rows.shape[:-1], layout.head_dim).astype(np.int64) - (1 << (layout.form.width - 1))
    return codes, unpack_flags(rows[..., layout.code_bytes :], layout.groups)


def probabilities(scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Integers 0..32767 in proportion to exp(score), highest 32767: float32 and bool [..., total] to int64."""
    hidden = np.where(visible, scores, np.float32(-3.0e38))
    top = hidden.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        steps = np.rint((top - hidden) * LOG2E_STEPS)
    z = np.where(visible, np.clip(steps, 0, EXPONENT_LIMIT), EXPONENT_LIMIT).astype(np.int64)
    whole, part = z >> EXPONENT_BITS, z & ((1 << EXPONENT_BITS) - 1)
    a0, a1, a2, a3 = POWER
    inner = a2 - ((part * a3) >> EXPONENT_BITS)
    inner = a1 - ((part * inner) >> EXPONENT_BITS)
    power = a0 - ((part * inner) >> EXPONENT_BITS)
    rounded = (power + ((1 << whole) >> 1)) >> whole
    return np.where(visible, rounded, 0)


def append(new: np.ndarray, past: np.ndarray, unit: np.ndarray, layout: AttentionLayout) -> np.ndarray:
    """The cache with the tokens of `new` float32 [batch, T, kv_heads * D] razored behind it."""
    batch, tokens, _ = new.shape
    heads = new.reshape(batch, tokens, layout.kv_heads, layout.head_dim).transpose(0, 2, 1, 3)
    units = np.asarray(unit, np.float32).reshape(1, -1, 1, 1)
    codes, flags = razor(to_integers(heads, units, layout.form), layout.form)
    return np.concatenate([past, pack_rows(codes, flags, layout)], axis=2)


def query_integers(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries float32 [..., D] as integers and their units [..., 1]."""
    top = np.abs(query).max(axis=-1, keepdims=True)
    units = np.where(top > 0, top / np.float32(QUERY_LIMIT), np.float32(1.0)).astype(np.float32)
    return np.clip(np.rint(query / units), -QUERY_LIMIT, QUERY_LIMIT).astype(np.int64), units


def sdr_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, past_key: np.ndarray,
    past_value: np.ndarray, key_unit: np.ndarray, value_unit: np.ndarray, layout: AttentionLayout,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Reference of SdrAttention: (Y float32 [batch, T, heads * D], present_key, present_value)."""
    batch, tokens, _ = query.shape
    keys = append(key, past_key, key_unit, layout)
    values = append(value, past_value, value_unit, layout)
    kv, repeat = layout.kv_heads, layout.heads // layout.kv_heads
    q, q_units = query_integers(query.reshape(batch, tokens, kv, repeat, layout.head_dim).transpose(0, 2, 3, 1, 4))
    codes, flags = unpack_rows(keys, layout)
    scores = np.zeros((*q.shape[:-1], keys.shape[2]), np.int64)  # [batch, kv, repeat, T, total]
    for g in range(layout.groups):
        part = slice(g * layout.form.group_size, (g + 1) * layout.form.group_size)
        macs = np.einsum("bkrtd,bksd->bkrts", q[..., part], codes[..., part])
        scores += macs << flags[..., g].astype(np.int64)[:, :, None, None, :]
    factor = np.asarray(key_unit, np.float32).reshape(1, -1, 1, 1, 1) * np.float32(layout.scale)
    real = scores.astype(np.float32) * (q_units * factor)
    if layout.softcap > 0:
        cap = np.float32(layout.softcap)
        real = np.tanh(real / cap) * cap
    weights = probabilities(real, mask[:, :, None])
    codes, flags = unpack_rows(values, layout)
    mixed = np.zeros(q.shape, np.int64)
    for g in range(layout.groups):
        part = slice(g * layout.form.group_size, (g + 1) * layout.form.group_size)
        shifted = weights << flags[..., g].astype(np.int64)[:, :, None, None, :]
        mixed[..., part] = np.einsum("bkrts,bksd->bkrtd", shifted, codes[..., part])
    total = weights.sum(axis=-1, keepdims=True).astype(np.float32)
    units = np.asarray(value_unit, np.float32).reshape(1, -1, 1, 1, 1)
    out = mixed.astype(np.float32) / np.maximum(total, np.float32(1.0)) * units
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, -1).astype(np.float32), keys, values
