"""A causal model on the interpreter: keys and values in preallocated arrays, one pair per attention node, batch one.

It is what the compiled engine (engine/) is tested against, what `--activations float32` means, and what runs a graph
that the engine cannot plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts.graph import Graph, Node
from export.artefacts.reader import read_graph
from export.artefacts.states import KEYS_AND_VALUES, recurrent_states
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.contract.formats.groups import GROUP_MATMUL
from export.contract.operators.integers import SDR_ATTENTION
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION, SparseLayout, page_means, seen_pages
from export.contract.pages import PAGE
from runtime_py.reference.adapters import ReferenceTerms
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.interpreter import ATTENTIONS, Interpreter
from runtime_py.reference.kernels import masked_softmax
from runtime_py.reference.recurrent import EVERY, MOST_BYTES, Recurrent
from runtime_py.reference.sdr import attend, attention_layout
from runtime_py.reference.stepping import Stepped, token_by_token
from runtime_py.system.finite import checked_logits
from runtime_py.system.memory import held_bytes

_CACHE_CHUNK = 256  # tokens by which a key-value cache grows
_HEADS = (CODEBOOK_MATMUL, GROUP_MATMUL, "MatMul")  # products that can make logits
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass
class State:
    """Keys and values of the tokens seen so far, by attention node, and the recurrent states behind them.

    float32 [kv_heads, capacity, head_dim]; razored: uint8 [1, kv_heads, length, row_bytes], as in
    export/contract/operators/attention.py.
    """

    length: int
    keys: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    recurrent: Recurrent = field(default_factory=lambda: Recurrent([]))
    adapter: str = ""  # whose terms its tokens get


class Session:
    """Runs one model folder. Holds no per-generation state, so several State objects can share it."""

    def __init__(self, folder: str | Path | Graph, terms: ReferenceTerms | None = None) -> None:
        """folder: a model folder, or the graph read from one. terms: the adapters that a state can have.

        Raises InputError when the folder is incomplete, hostile, or uses an operator this runtime lacks.
        """
        self.graph: Graph = expand_products(folder if isinstance(folder, Graph) else read_graph(Path(folder)))
        if not any(info.name == "logits" for info in self.graph.outputs):
            raise InputError("model.onnx: has no output `logits`; encoders run by `athena-export embed`")
        self._interpreter = Interpreter(self.graph)
        self._head_values = self._find_head_values()
        self.vocab_size = self._dimension("logits", 2)
        self._recurrent = recurrent_states(self.graph)
        attending = [node for node in self.graph.nodes if node.op_type in ATTENTIONS]
        self._cache_of = {name: node.name for node in attending for name in node.outputs[1:]}  # by keys or values
        self._terms = terms or ReferenceTerms()
        self.adapters = self._terms.names

    def _find_head_values(self) -> set[str]:
        """Outputs of the vocabulary product (and of the bias after it): computed for the last token when asked."""
        names = {"logits"}
        for node in reversed(self._interpreter.steps):
            if names.intersection(node.outputs) and node.op_type == "Add":
                names.update(node.inputs)
        return names

    def _dimension(self, name: str, axis: int) -> int:
        info = self.graph.values.get(name)
        size = info.shape[axis] if info is not None and info.shape is not None and len(info.shape) > axis else None
        if not isinstance(size, int):
            raise InputError(f"model.onnx: {name} does not state its dimension {axis}")
        return size

    def held_bytes(self) -> int:
        """Weights and what was computed from them at load."""
        return held_bytes(self._interpreter.arrays())

    def state_bytes(self, tokens: int) -> int:
        """Most that a state of so many tokens takes."""
        caches = [info.shape for info in self.graph.inputs if info.name.startswith(KEYS_AND_VALUES) and info.shape]
        each = sum(math.prod(size for size in shape if isinstance(size, int)) for shape in caches)
        capacity = max(2 * tokens, _CACHE_CHUNK)  # it grows ahead
        states = sum(4 * math.prod(state.shape) for state in self._recurrent)
        return 4 * each * capacity + (states + max(MOST_BYTES, states) if states else 0)

    most_together = 1  # tokens that one pass over the weights computes, as far as advance() offers it

    def new_state(self) -> State:
        """An empty key-value cache, and states of zeros."""
        return State(0, {}, {}, Recurrent([np.zeros(state.shape, np.float32) for state in self._recurrent]))

    def adapt(self, state: State, adapter: str) -> None:
        """Give the tokens to come this adapter's terms ("": none). A state with others has to be empty.

        Raises InputError on one that is not loaded.
        """
        if adapter != state.adapter:
            assert state.length == 0, "a cache of another adapter"
            self._terms.adding(adapter)
            state.adapter = adapter

    def rewind(self, state: State, length: int) -> int:
        """Forget all but the first `length` tokens; how many are left, which recurrent states may make fewer."""
        state.length = state.recurrent.cut(length)
        return state.length

    def forward(self, state: State, tokens: np.ndarray | Sequence[int], last_only: bool = False) -> np.ndarray:
        """Append tokens (int [T], T >= 1) to the state and return their logits, float32 [T or 1, vocabulary].

        Raises InputError on a token outside the vocabulary or an empty input, NotFiniteError on logits that are no
        numbers. The state is then as long as before.
        """
        ids = np.asarray(tokens, dtype=np.int64).reshape(1, -1)
        if ids.size == 0:
            raise InputError("the prompt is empty: at least one token is needed")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise InputError(f"token {int(ids.max())} lies outside the vocabulary of {self.vocab_size}")
        total = state.length + ids.shape[1]
        state.recurrent.check(state.length)
        values: dict[str, np.ndarray] = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(state.length, total, dtype=np.int64)[None],
            **{own.input: array for own, array in zip(self._recurrent, state.recurrent.arrays)},
        }

        def take_over(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
            if last_only and node.outputs[0] in self._head_values and node.op_type in _HEADS:
                inputs[0] = inputs[0][:, -1:]
            return self._take_over(node, inputs)

        with np.errstate(over="ignore", invalid="ignore"):  # what is no number reaches the logits and is said there
            self._interpreter.run(
                values,
                lambda node, inputs: self._attend(node, inputs, state),
                take_over,
                self._terms.adding(state.adapter),
            )
        logits = values.get("logits")
        lengths = (1, ids.shape[1]) if last_only else (ids.shape[1],)
        if logits is None or logits.shape not in [(1, length, self.vocab_size) for length in lengths]:
            raise InputError("model.onnx: does not make logits [1, tokens, vocabulary]")
        if logits.dtype not in _FLOATS:
            raise InputError(f"model.onnx: makes logits of type {logits.dtype}, which are no floating-point numbers")
        found = checked_logits(logits[0].astype(np.float32, copy=False))
        self._go_on(state, values, total)
        return found[-1:] if last_only else found

    def step(self, states: Sequence[State], tokens: Sequence[int]) -> list[Stepped]:
        """Append one token to each of several states: the logits of each, or why there are none."""
        return [rows[0] for rows in self.advance(states, [[token] for token in tokens])]

    def advance(self, states: Sequence[State], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        """Append a run of tokens to each of several states: the logits of each, up to the first that has none."""
        return token_by_token(self, states, runs)

    def _go_on(self, state: State, values: dict[str, np.ndarray], total: int) -> None:
        """The state behind `total` tokens. Raises InputError where the graph made recurrent states of another form."""
        for own in self._recurrent:
            made = values.get(own.output)
            if made is None or made.shape != own.shape or made.dtype != np.float32:
                raise InputError(f"model.onnx: does not make {own.output} as float32 {list(own.shape)}")
        several = total > state.length + 1
        state.length = state.recurrent.length = total
        for own, array in zip(self._recurrent, state.recurrent.arrays):
            array[...] = values[own.output]
        if several or total % EVERY == 0:
            state.recurrent.keep()

    def _take_over(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...] | None:
        """Outputs of a node that is computed in another way than its operator says (toolchain/evaluate/emulate.py)."""
        return None

    def _attend(self, node: Node, inputs: list[Any], state: State) -> np.ndarray:
        """Attention-23 and those of ours for 3-D inputs, batch one, cache held here: [1, T, heads * head_dim]."""
        query, key, value, mask = inputs[:4]
        if node.op_type == SDR_ATTENTION:
            return _attend_razored(node, inputs, state)
        if query.ndim == 4:
            return self._attend_to_earlier(node, query, mask, state)
        heads, kv_heads = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
        tokens, head_dim = query.shape[1], query.shape[2] // heads
        shapes = key.shape == value.shape == (1, tokens, kv_heads * head_dim) and query.shape == (
            1,
            tokens,
            heads * head_dim,
        )
        if not shapes or min(heads, kv_heads, head_dim) < 1 or heads % kv_heads:
            raise ValueError("queries, keys and values do not fit the heads")
        past, total = state.length, state.length + tokens
        keys = _append(state.keys, node.name, key, past, kv_heads)
        values = _append(state.values, node.name, value, past, kv_heads)
        grouped = query.reshape(tokens, kv_heads, heads // kv_heads, head_dim).transpose(1, 2, 0, 3)
        mixed = _mixed(node, grouped, (keys[:, :total], values[:, :total]), mask, past, inputs[6:7])
        return np.ascontiguousarray(mixed.transpose(2, 0, 1, 3)).reshape(1, tokens, -1)

    def _attend_to_earlier(self, node: Node, query: np.ndarray, mask: np.ndarray, state: State) -> np.ndarray:
        """Attention-23 over what an earlier node's cache holds: [1, heads, T, head_dim], as the queries are."""
        owners = {self._cache_of.get(name) for name in node.inputs[1:3]}
        owner = owners.pop() if len(owners) == 1 else None
        if owner is None or owner not in state.keys or len(query) != 1:
            raise ValueError("keys and values are not those of one earlier attention")
        keys, values = state.keys[owner], state.values[owner]
        _, heads, tokens, head_dim = query.shape
        kv_heads, total = len(keys), state.length + tokens
        if keys.shape[2] != head_dim or keys.ndim != 3 or heads % kv_heads or node.attributes.get("is_causal", 0):
            raise ValueError("queries do not fit the keys of the earlier attention")
        grouped = query.reshape(kv_heads, heads // kv_heads, tokens, head_dim)
        mixed = _mixed(node, grouped, (keys[:, :total], values[:, :total]), mask, state.length, [])
        return mixed.reshape(1, heads, tokens, -1)


def _mixed(
    node: Node, queries: np.ndarray, cache: tuple[np.ndarray, np.ndarray], mask: np.ndarray, past: int,
    sinks: Sequence[np.ndarray],
) -> np.ndarray:  # fmt: skip
    """float32 [kv_heads, heads / kv_heads, T, head_dim] from queries of that form and keys and values of all tokens."""
    kv_heads, repeat, tokens, head_dim = queries.shape
    keys, values = cache
    rows = np.ascontiguousarray(queries).reshape(kv_heads, repeat * tokens, head_dim)
    scores = rows @ keys.transpose(0, 2, 1)
    scale = np.float32(node.attributes.get("scale", 1 / math.sqrt(head_dim)))
    cap = np.float32(node.attributes.get("softcap", 0.0))
    if cap > 0:
        scores, scale = np.tanh(scores * (scale / cap)) * cap, np.float32(1.0)
    visible = mask.reshape(mask.shape[-2], keys.shape[1])
    if node.op_type == SPARSE_ATTENTION:
        layout = SparseLayout.of(node.attributes, kv_heads * repeat * head_dim)
        pages = seen_pages(queries, page_means(keys), past, layout)
        for head in range(kv_heads):
            seen = np.repeat(pages[head], PAGE, axis=1)[:, : keys.shape[1]] & visible
            masked_softmax(scores[head : head + 1], seen, past, repeat, scale)
    elif node.op_type == SINK_ATTENTION:
        scores = _beside_sinks(scores * scale, visible, past, repeat, sinks[0])
    else:
        masked_softmax(scores, visible, past, repeat, scale)
    return (scores @ values).reshape(kv_heads, repeat, tokens, -1)


def _attend_razored(node: Node, inputs: list[Any], state: State) -> np.ndarray:
    """SdrAttention with the cache in `state`. Raises ValueError where the inputs do not fit."""
    query, key, value, mask = inputs[:4]
    layout = attention_layout(node.attributes, query, key)
    total = state.length + query.shape[1]
    if value.shape != key.shape:
        raise ValueError("keys and values do not fit each other")
    empty = np.zeros((1, layout.kv_heads, 0, layout.row_bytes), np.uint8)
    old_keys, old_values = (store.get(node.name, empty)[:, :, : state.length] for store in (state.keys, state.values))
    visible = np.broadcast_to(mask.reshape(mask.shape[-2], total), (query.shape[1], total))
    out, state.keys[node.name], state.values[node.name] = attend(
        query, key, value, visible, (old_keys, old_values), (inputs[6], inputs[7]), layout
    )
    return out


def _beside_sinks(scores: np.ndarray, mask: np.ndarray, past: int, repeat: int, sinks: np.ndarray) -> np.ndarray:
    """Softmax over scores [kv_heads, repeat * T, total] and one sink of each head, which is a key before all others."""
    kv_heads, rows, _ = scores.shape
    own = np.repeat(np.asarray(sinks, np.float32).reshape(kv_heads, repeat), rows // repeat, axis=1)
    wide = np.concatenate([own[:, :, None], scores], axis=2)
    masked_softmax(wide, np.pad(mask, ((0, 0), (1, 0)), constant_values=True), past + 1, repeat, np.float32(1.0))
    return wide[:, :, 1:]


def _append(store: dict[str, np.ndarray], name: str, new: np.ndarray, past: int, kv_heads: int) -> np.ndarray:
    """Write new keys or values [1, T, kv_heads * D] behind `past` tokens of the named cache, growing it as needed."""
    tokens = new.shape[1]
    cache = store.get(name)
    if cache is None or cache.shape[1] < past + tokens:
        capacity = max(-(-(past + tokens) // _CACHE_CHUNK) * _CACHE_CHUNK, 2 * past)
        grown = np.empty((kv_heads, capacity, new.shape[2] // kv_heads), np.float32)
        if cache is not None:
            grown[:, :past] = cache[:, :past]
        store[name] = cache = grown
    cache[:, past : past + tokens] = new.reshape(tokens, kv_heads, -1).transpose(1, 0, 2)
    return cache
