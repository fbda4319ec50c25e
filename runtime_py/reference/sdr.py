"""The integer operators on numpy arrays, exact and reasonably fast: what the interpreter runs.

Integer products go through float64 matrix products, which are exact below 2**53: a sum of K products of a 16-bit and an
8-bit integer stays below K * 2**22. The references are in export/contract/operators/integers.py and
export/contract/operators/attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.artefacts.graph import Node
from export.contract.operators.attention import AttentionLayout, append, probabilities, query_integers, unpack_rows
from export.contract.operators.integers import IntegerLayout, sdr_quantize, weight_integers
from export.contract.operators.tender import tender_quantize
from export.contract.sdr import restore, unpack_flags


class IntegerWeights:
    """The whole integers [N, K] of an SdrMatMul's weights, and its scales by row."""

    def __init__(
        self, node: Node, codes: np.ndarray, codebook: np.ndarray, flags: np.ndarray, scale: np.ndarray
    ) -> None:
        """Raises ValueError when a weight leaves 8 bits or the scales do not fit."""
        self.layout: IntegerLayout = node.integer_layout()
        self.layout.check(codes, codebook, flags, scale)
        shifts = unpack_flags(flags, self.layout.groups).astype(np.int64)[..., None]
        whole = (weight_integers(self.layout, codes, codebook) << shifts).reshape(self.layout.N, -1)
        if int(np.abs(whole).max()) > 128:
            raise ValueError("weights and flags do not fit 8 bits")
        self.integers = whole[:, : self.layout.K].astype(np.int8 if int(whole.max()) < 128 else np.int16)
        rows = np.arange(self.layout.N) // self.layout.rows_per_scale
        self.scale = np.asarray(scale, np.float32)[rows, 0]
        if not np.isfinite(self.scale).all():
            raise ValueError("scales are not finite")

    def sums(self, codes: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """int64 [..., N] for codes [..., G, g] and flags [..., G]."""
        layout = self.layout
        flat = codes.reshape(*flags.shape[:-1], layout.groups * layout.group_size)
        whole = restore(flat, flags, layout.group_size)[..., : layout.K].astype(np.float64)
        return np.rint(whole @ self.integers.T.astype(np.float64)).astype(np.int64)

    def product(self, codes: np.ndarray, flags: np.ndarray, units: np.ndarray) -> np.ndarray:
        """float32 [..., N]."""
        return self.sums(codes, flags).astype(np.float32) * units * self.scale


def razor_activations(node: Node, x: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, ...]:
    """SdrQuantize. Raises ValueError where the unit is not one positive number."""
    if unit.shape != (1,) or not (np.isfinite(unit).all() and unit[0] > 0):
        raise ValueError("its unit must be one positive number")
    return sdr_quantize(x, unit, node.sdr_format(), bool(node.attributes["per_token"]))


def group_activations(
    node: Node, x: np.ndarray, order: np.ndarray, middle: np.ndarray, shifts: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, ...]:
    """TenderQuantize. Raises ValueError where the constants do not fit."""
    return tender_quantize(x, order, middle, shifts, unit, node.tender_format())


def attention_layout(attributes: Mapping[str, Any], query: np.ndarray, key: np.ndarray) -> AttentionLayout:
    """Raises ValueError (or KeyError, TypeError) where queries and keys do not fit the attributes."""
    layout = AttentionLayout.of(attributes, query.shape[2])
    if key.shape != (1, query.shape[1], layout.kv_heads * layout.head_dim):
        raise ValueError("queries and keys do not fit the heads")
    return layout


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, past: tuple[np.ndarray, np.ndarray],
    units: tuple[np.ndarray, np.ndarray], layout: AttentionLayout,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """SdrAttention of one sequence: (Y float32 [1, T, heads * D], cached keys, cached values).

    mask: bool [T, total]; past: cached rows uint8 [1, kv_heads, past, row_bytes].
    """
    if any(unit.shape not in ((1,), (layout.kv_heads,)) for unit in units):
        raise ValueError("units must be one number or one for each key-value head")
    tokens, kv, repeat = query.shape[1], layout.kv_heads, layout.heads // layout.kv_heads
    cached = [append(new, old, unit, layout) for new, old, unit in zip((key, value), past, units)]
    keys, values = (
        restore(*unpack_rows(rows[0], layout), layout.form.group_size).astype(np.float64) for rows in cached
    )
    q, q_units = query_integers(query.reshape(tokens, kv, repeat, layout.head_dim).transpose(1, 2, 0, 3))
    out = np.empty((kv, repeat, tokens, layout.head_dim), np.float32)
    key_unit, value_unit = (np.broadcast_to(unit.astype(np.float32), kv) for unit in units)
    for head in range(kv):
        scores = np.rint(q[head].astype(np.float64) @ keys[head].T).astype(np.float32)
        real = scores * (q_units[head] * (key_unit[head] * np.float32(layout.scale)))
        if layout.softcap > 0:
            real = np.tanh(real / np.float32(layout.softcap)) * np.float32(layout.softcap)
        weights = probabilities(real, mask[None])
        mixed = np.rint(weights.astype(np.float64) @ values[head]).astype(np.int64).astype(np.float32)
        total = weights.sum(axis=-1, keepdims=True).astype(np.float32)
        out[head] = mixed / np.maximum(total, np.float32(1.0)) * value_unit[head]
    return out.transpose(2, 0, 1, 3).reshape(1, tokens, -1), cached[0], cached[1]
