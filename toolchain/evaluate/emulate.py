"""A model folder evaluated with an accelerator's arithmetic: what `eval --emulate` scores.

Every product of activations with stored weights, the scores and the values go through what the target computes
(arithmetic.py); weights are the folder's own 8-bit codebook entries with their scales. Residual sums and what else the
accelerator's description leaves open stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_MATMUL, CodebookLayout
from export.contract.formats.groups import GROUP_MATMUL
from export.contract.operators.integers import SDR_ATTENTION, SDR_MATMUL
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from export.contract.operators.tender import TENDER_QUANTIZE
from export.contract.packing import unpack
from hw_model.estimate import open_target
from hw_model.functional import rap
from hw_model.sizing.variation import parse_changes
from runtime_py.reference.interpreter import Interpreter
from runtime_py.reference.session import Session, State, _append
from runtime_py.text.encoder import TextEncoder
from targets import Target, TargetError
from toolchain.evaluate.arithmetic import Arithmetic, arithmetic_of, quantize_rows

__all__ = ["EmulatedEncoder", "EmulatedScorer", "Emulation", "emulated_target", "quantize_rows"]


def emulated_target(name: str, constants: Sequence[str] = ()) -> Target:
    """A target by name or file, some of its constants with other values ("adc_bits=3"). Raises InputError."""
    try:
        return open_target(name).with_changes(parse_changes(tuple(constants)))
    except TargetError as error:
        raise InputError(str(error)) from None


class EmulatedScorer:
    """Scores token windows like toolchain.evaluate.perplexity.FolderScorer, with an accelerator's integers."""

    def __init__(self, folder: Path, target: Target, noise: float = 0.0) -> None:
        """Raises InputError when the target has no arithmetic of its own, or not for this model."""
        self.session = _Emulated(folder, Emulation(arithmetic_of(target, noise)))
        self.vocab_size = self.session.vocab_size

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.session.forward(self.session.new_state(), tokens)


class EmulatedEncoder(TextEncoder):
    """An encoder whose states an accelerator computes."""

    def __init__(self, folder: Path, target: Target, noise: float = 0.0) -> None:
        """As EmulatedScorer."""
        emulation = Emulation(arithmetic_of(target, noise))
        super().__init__(folder, "float32")
        assert isinstance(self._runner, Interpreter)
        self._runner = _Run(self._runner, emulation)  # type: ignore[assignment]


class Emulation:
    """The nodes that an accelerator computes in its own way."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.grouped: frozenset[str] = frozenset()  # codes that are made in the file's own channel groups
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def know(self, graph: Graph) -> None:
        """Learn of a graph which products are of channel groups."""
        made = [node.outputs[0] for node in graph.nodes if node.op_type == TENDER_QUANTIZE and node.domain == DOMAIN]
        self.grouped = frozenset(made)

    def take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
        """The outputs of products, and where the machine has integer functions of norms and activation functions."""
        if node.is_expert_product:
            raise InputError(f"node {node.name}: --emulate has no unit for products with picked experts")
        if node.op_type == GROUP_MATMUL:
            raise InputError(f"node {node.name}: --emulate needs one scale along a row")
        if node.op_type == SDR_MATMUL and node.inputs[0] in self.grouped:
            if self.arithmetic.shifts_groups:
                return None  # the file's groups, middles and shifts, in the file's own integers
            raise InputError(f"node {node.name}: --emulate with channel groups is for accumulators that shift (tender)")
        if node.op_type == SDR_MATMUL:
            raise InputError(f"node {node.name}: a razored export has its arithmetic in its graph; leave out --emulate")
        if node.op_type in (SDR_ATTENTION, SINK_ATTENTION, SPARSE_ATTENTION):
            raise InputError(f"node {node.name}: --emulate has no unit for {node.op_type}")
        if node.op_type == CODEBOOK_MATMUL:
            return (self._product(node, inputs),)
        return _integer_function(node, inputs) if self.arithmetic.integer_functions else None

    def _product(self, node: Node, inputs: list[Any]) -> np.ndarray:
        """x float32 [1, T, K] with the matrix that the arrays hold."""
        if node.name not in self._weights:
            entries, scale = _integers(node.layout(), *inputs[1:])
            held, worth = self.arithmetic.weights(entries)
            self._weights[node.name] = held, scale * worth
        weights, scale = self._weights[node.name]
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        out = self.arithmetic.product(x, weights) * scale[:, 0]
        return out.reshape(*inputs[0].shape[:-1], -1).astype(np.float32)

    def attend(
        self, node: Node, query: np.ndarray, keys: np.ndarray, values: np.ndarray, visible: np.ndarray
    ) -> np.ndarray:
        """Attention with integer queries, keys, probabilities and values.

        query [1, T, heads * head_dim], keys and values [kv_heads, keys, head_dim], visible bool [T, keys].
        """
        if node.attributes.get("softcap", 0.0):
            raise InputError(f"node {node.name}: --emulate has no unit for soft caps on attention scores")
        if query.ndim == 4:
            raise InputError(f"node {node.name}: --emulate has no unit for keys and values of an earlier layer")
        heads, quantize, passing = node.attributes["q_num_heads"], self.arithmetic.quantize, self.arithmetic.passing
        tokens, head_dim, kv_heads = query.shape[1], query.shape[2] // heads, len(keys)
        scale = float(node.attributes.get("scale", head_dim**-0.5))
        stored = [(quantize(keys[g]), quantize(values[g].T)) for g in range(kv_heads)]  # values: a unit per channel
        out = np.empty((tokens, heads, head_dim), np.float32)
        for head in range(heads):
            (k, k_unit), (v, v_unit) = stored[head * kv_heads // heads]
            q, q_unit = passing(query.reshape(tokens, heads, head_dim)[:, head])
            scores = (q.astype(np.int64) @ k.T.astype(np.int64)) * (q_unit * k_unit.T * scale)
            p, p_unit = passing(self.arithmetic.softmax(np.where(visible, scores, -np.inf)))
            out[:, head] = (p.astype(np.int64) @ v.T.astype(np.int64)) * (p_unit * v_unit.T)
        return out.reshape(1, tokens, heads * head_dim)


class _Emulated(Session):
    """The interpreter with the products taken over."""

    def __init__(self, folder: Path, emulation: Emulation) -> None:
        self._emulation = emulation
        super().__init__(folder)
        emulation.know(self.graph)

    def _take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
        return self._emulation.take_over(node, inputs)

    def _attend(self, node: Node, inputs: list[Any], state: State) -> np.ndarray:
        """Attention of a whole window."""
        query, key, value, mask = inputs[:4]
        kv_heads, tokens, past = node.attributes["kv_num_heads"], query.shape[1], state.length
        keys = _append(state.keys, node.name, key, past, kv_heads)[:, : past + tokens]
        values = _append(state.values, node.name, value, past, kv_heads)[:, : past + tokens]
        visible = np.broadcast_to(mask.reshape(mask.shape[-2], -1), (tokens, past + tokens))
        visible = visible & (np.arange(past + tokens) <= past + np.arange(tokens)[:, None])
        return self._emulation.attend(node, query, keys, values, visible)


class _Run:
    """An encoder's interpreter with its nodes taken over."""

    def __init__(self, interpreter: Interpreter, emulation: Emulation) -> None:
        self._interpreter, self._emulation = interpreter, emulation

    def run(self, values: dict[str, np.ndarray], attend: Any, **more: Any) -> dict[str, np.ndarray]:
        """As Interpreter.run; `attend` is what the target does."""
        return self._interpreter.run(values, self._attend, self._emulation.take_over, **more)

    def _attend(self, node: Node, inputs: list[Any]) -> np.ndarray:
        query, key, value, mask = inputs[:4]
        tokens, kv_heads = query.shape[1], node.attributes["kv_num_heads"]
        keys, values = (a.reshape(tokens, kv_heads, -1).transpose(1, 0, 2) for a in (key, value))
        visible = np.broadcast_to(mask.reshape(mask.shape[-2], tokens), (tokens, tokens))
        if node.attributes.get("is_causal", 0):
            visible = visible & np.tri(tokens, dtype=bool)
        return self._emulation.attend(node, query, keys, values, visible)


def _integer_function(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
    """RAP's norms, sigmoid and GELU (hw_model/functional/rap.py)."""
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
    return None


def _integers(layout: CodebookLayout, codes: np.ndarray, book: np.ndarray, scale: np.ndarray) -> tuple[Any, Any]:
    """The weights as int8 codebook entries [N, K] and scales [N, 1]. Raises InputError for several groups a row."""
    if layout.groups != 1:
        raise InputError("--emulate needs one codebook along a row (no --group-size)")
    rows = np.arange(layout.N)
    code = unpack(codes, layout.bits, layout.K).astype(np.intp)
    return book[rows[:, None] // layout.rows_per_codebook, 0, code], scale[rows // layout.rows_per_scale].astype(
        np.float64
    )
