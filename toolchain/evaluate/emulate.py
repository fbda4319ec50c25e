"""A model folder evaluated with an accelerator's arithmetic: what `eval --emulate` scores.

Every product of activations with stored weights, the scores and the values go through the accelerator's functional
model on 8-bit integers; weights are the folder's own 8-bit codebook entries with their scales. Residual sums and what
else the accelerator's description leaves open stay in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts.reader import Node
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_MATMUL, CodebookLayout
from export.contract.formats.groups import GROUP_MATMUL
from export.contract.packing import unpack
from hw_model.estimate import open_target
from hw_model.functional import attentionlego, rap
from hw_model.machines.array import rows_active
from runtime_py.reference.session import Session, State, _append

EMULATIONS = ("rap", "attentionlego")
_SCORE_LIMIT = 4.0  # AttentionLego's scores saturate here: its softmax has a range of e**2 and no more


class EmulatedScorer:
    """Scores token windows like toolchain.evaluate.perplexity.FolderScorer, with an accelerator's integers."""

    def __init__(self, folder: Path, name: str, noise: float = 0.0) -> None:
        """Raises InputError when the accelerator or its settings are unknown."""
        kinds = {"rap": _Rap, "attentionlego": _Lego}
        if name not in kinds:
            raise InputError(f"--emulate must be one of {', '.join(EMULATIONS)}, not {name!r}")
        if not 0 <= noise <= 10:
            raise InputError(f"--noise must be 0 to 10, not {noise}")
        self.session = kinds[name](folder, noise)
        self.vocab_size = self.session.vocab_size

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.session.forward(self.session.new_state(), tokens)


class _Emulated(Session, ABC):
    """The interpreter with the products taken over; subclasses say how integers are multiplied."""

    def __init__(self, folder: Path, noise: float) -> None:
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.noise = noise
        self.ones = self.places = 0  # of the activations' bit planes: the density that the cost model assumes
        super().__init__(folder)

    def _take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
        if node.is_expert_product:
            raise InputError(f"node {node.name}: --emulate has no unit for products with picked experts")
        if node.op_type == GROUP_MATMUL:
            raise InputError(f"node {node.name}: --emulate needs one scale along a row")
        return (self._product(node, inputs),) if node.op_type == CODEBOOK_MATMUL else None

    def _product(self, node: Node, inputs: list[Any]) -> np.ndarray:
        """x float32 [1, T, K] through int8 activations with a power of two as scale."""
        if node.name not in self._weights:
            self._weights[node.name] = _integers(node.layout(), *inputs[1:])
        weights, scale = self._weights[node.name]
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        q, unit = quantize_rows(x)
        self.ones += int(np.unpackbits(q.view(np.uint8)).sum())
        self.places += 8 * q.size
        out = self._multiply(q, weights) * unit * scale[:, 0]
        return out.reshape(*inputs[0].shape[:-1], -1).astype(np.float32)

    @abstractmethod
    def _multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """int8 [T, K] times int8 [N, K] transposed: integers [T, N]."""

    @abstractmethod
    def _softmax(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores float [T, keys]; those that may not be seen are minus infinity."""

    def _attend(self, node: Node, inputs: list[Any], state: State) -> np.ndarray:
        """Attention of a whole window with int8 queries, keys, probabilities and values."""
        if node.attributes.get("softcap", 0.0):
            raise InputError(f"node {node.name}: --emulate has no unit for soft caps on attention scores")
        query, key, value, mask = inputs[:4]
        if query.ndim == 4:
            raise InputError(f"node {node.name}: --emulate has no unit for keys and values of an earlier layer")
        heads, kv_heads = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
        tokens, head_dim = query.shape[1], query.shape[2] // heads
        past = state.length
        keys = _append(state.keys, node.name, key, past, kv_heads)[:, : past + tokens]
        values = _append(state.values, node.name, value, past, kv_heads)[:, : past + tokens]
        scale = float(node.attributes.get("scale", head_dim**-0.5))
        visible = np.broadcast_to(mask.reshape(mask.shape[-2], -1), (tokens, past + tokens))
        visible = visible & (np.arange(past + tokens) <= past + np.arange(tokens)[:, None])
        out = np.empty((tokens, heads, head_dim), np.float32)
        for head in range(heads):
            group = head * kv_heads // heads
            q, q_unit = quantize_rows(query.reshape(tokens, heads, head_dim)[:, head])
            k, k_unit = quantize_rows(keys[group])
            v, v_unit = quantize_rows(values[group].T)  # a scale per channel: probabilities are summed over positions
            scores = (q.astype(np.int64) @ k.T.astype(np.int64)) * (q_unit * k_unit.T * scale)
            weights = self._softmax(np.where(visible, scores, -np.inf))
            p, p_unit = quantize_rows(weights)
            out[:, head] = (p.astype(np.int64) @ v.T.astype(np.int64)) * (p_unit * v_unit.T)
        return out.reshape(1, tokens, heads * head_dim)


class _Rap(_Emulated):
    """Ones-splitting products, integer softmax, SiLU and norms."""

    def __init__(self, folder: Path, noise: float) -> None:
        target = open_target("rap")
        self._active, self._adc_bits = rows_active(target), round(target["adc_bits"])
        self._random = np.random.default_rng(0)
        super().__init__(folder, noise)

    def _multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if not rap.is_lossless(self._active, self._adc_bits):
            return rap.product(q, weights, self._active, self._adc_bits, self.noise)
        exact = (q.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.int64)  # below 2**53: exact
        if self.noise == 0:
            return exact
        spread = np.sqrt(rap.noise_variance(q, self._active, self.noise))
        return exact + np.rint(spread * self._random.standard_normal(exact.shape)).astype(np.int64)

    def _softmax(self, scores: np.ndarray) -> np.ndarray:
        bits = 6
        fixed = np.rint(np.where(np.isfinite(scores), scores, -(2.0**14)) * 2**bits).astype(np.int64)
        return np.where(np.isfinite(scores), rap.softmax(fixed, bits) / 2**15, 0.0)

    def _take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
        if node.op_type in ("RMSNormalization", "LayerNormalization") and inputs[0].dtype == np.float32:
            q, _ = quantize_rows(inputs[0], 16)
            norm = rap.rms_norm if node.op_type == "RMSNormalization" else rap.layer_norm
            values, places = norm(q)
            out = values * 2.0**-places * inputs[1]
            return ((out + inputs[2] if len(inputs) > 2 and inputs[2] is not None else out).astype(np.float32),)
        if node.op_type in ("Sigmoid", "Gelu"):
            fixed = np.clip(np.rint(inputs[0].astype(np.float64) * 2**10), -(2**40), 2**40).astype(np.int64)
            out = rap.sigmoid(fixed, 10) / 2**15 if node.op_type == "Sigmoid" else rap.gelu(fixed, 10) / 2**10
            return (out.astype(np.float32),)
        return super()._take_over(node, inputs)


class _Lego(_Emulated):
    """Products through 6-bit converters of 16 inputs each; the table softmax."""

    def _multiply(self, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return attentionlego.product(q, weights)

    def _softmax(self, scores: np.ndarray) -> np.ndarray:
        """Rows hold as many scores as are visible: the unit sees no others."""
        out = np.zeros(scores.shape)
        for row, values in zip(out, scores):
            seen = np.isfinite(values)
            row[seen] = attentionlego.softmax(attentionlego.encode_scores(values[seen], _SCORE_LIMIT)) / 256
        return out


def quantize_rows(x: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """float [..., K] to `bits`-bit integers with one power of two per vector: (int8 or int64, unit [..., 1])."""
    top = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    limit = 2.0 ** (bits - 1) - 1
    unit = np.where(top > 0, 2.0 ** np.ceil(np.log2(np.where(top > 0, top, 1.0) / limit)), 1.0)
    return np.rint(x / unit).astype(np.int8 if bits <= 8 else np.int64), unit


def _integers(layout: CodebookLayout, codes: np.ndarray, book: np.ndarray, scale: np.ndarray) -> tuple[Any, Any]:
    """The weights as int8 codebook entries [N, K] and scales [N, 1]. Raises InputError for several groups a row."""
    if layout.groups != 1:
        raise InputError("--emulate needs one codebook along a row (no --group-size)")
    rows = np.arange(layout.N)
    code = unpack(codes, layout.bits, layout.K).astype(np.intp)
    return book[rows[:, None] // layout.rows_per_codebook, 0, code], scale[rows // layout.rows_per_scale].astype(
        np.float64
    )
