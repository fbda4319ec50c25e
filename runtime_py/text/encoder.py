"""Runs an encoder folder: texts in, one vector each out. Texts are packed, not padded, so each is as it is alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.adapters.folder import adapted_graph, folder_adapters
from export.artefacts.graph import Graph, Node
from export.artefacts.reader import read_graph
from export.contract.errors import InputError, NotFiniteError
from export.files.access import read_json
from export.files.foreign import foreign
from export.graph.archs import is_encoder_family
from export.graph.archs._tasks import is_embedding
from export.graph.sentence_modules import PROMPTS, TEXT_LIMIT, read_prompts
from runtime_py.engine.encoder import EncoderEngine, Ids
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import runs_directly
from runtime_py.engine.terms import Terms
from runtime_py.load import ACTIVATIONS
from runtime_py.reference.adapters import ReferenceTerms
from runtime_py.reference.constants import ConstantFolder
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.interpreter import Interpreter
from runtime_py.reference.kernels import masked_softmax
from runtime_py.system.memory import held_bytes
from runtime_py.text.generator import context_length, load_tokenizer
from runtime_py.text.tokenizing import encode, most_bytes

_MOST_IDS = 2**31  # more than any vocabulary has
_LANGUAGE_MODELS = "language models run by `athena-export run`"
VECTOR, SCORES, STATES = "sentence_embedding", "scores", "last_hidden_state"


def is_encoder(folder: Path) -> bool:
    """Whether config.json is that of an encoder. Raises InputError when it is missing."""
    config = read_json(folder / "config.json")
    return is_encoder_family(config.get("model_type")) or is_embedding(config)


class StatesModel:
    """States of the tokens of one text at a time, and one value that the graph makes of them."""

    def __init__(
        self,
        folder: str | Path,
        made: str,
        activations: str = "int8",
        threads: int | None = None,
        adapters: Sequence[str] | None = (),
    ) -> None:
        """made: the graph's output beside the states. activations: "int8" (the compiled engine, where it can plan the
        graph) or "float32" (the interpreter). adapters: names of those of the folder that a text can have; None: all
        of them. The first one is `adapter`, whose terms a text gets that names none.

        Raises InputError when the folder is incomplete, hostile or holds no such model.
        """
        self.folder = Path(folder)
        if activations not in ACTIVATIONS:
            raise InputError(f"--activations {activations!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        graph = read_graph(self.folder)
        outputs = {info.name for info in graph.outputs}
        if not {made, STATES} <= outputs:
            others = "rerankers run by `athena-export serve`" if SCORES in outputs else _LANGUAGE_MODELS
            raise InputError(f"{self.folder / 'model.onnx'}: has no output `{made}`; {others}")
        self.tokenizer = load_tokenizer(self.folder)
        self.limit = min(context_length(self.folder), _text_limit(self.folder))
        self._most_bytes = most_bytes(self.tokenizer, self.limit)
        self.tokenizer.enable_truncation(self.limit)
        self.interpreted = ""  # why the interpreter runs it
        self._inputs = {info.name for info in graph.inputs}
        self._runner: Interpreter | EncoderEngine
        with foreign(self.folder / "model.onnx", "the graph is malformed"):
            found = folder_adapters(graph, adapters)
            adapted, sites = adapted_graph(graph, found)
            self._terms = ReferenceTerms(found, sites)
            self._runner, self.interpreted = _open(adapted, activations, self.limit, threads, Terms(found, sites))
        self.adapters, self.adapter = self._terms.names, adapters[0] if adapters else ""
        self._folder = ConstantFolder(graph)
        self._made = made

    def states(
        self, ids: Sequence[int], segments: Sequence[int] | None = None, adapter: str | None = None
    ) -> np.ndarray:
        """float32 [tokens, hidden]. segments: of each token, where the model has some; None: all of the first one.
        adapter: whose terms are added, "" for none; None: that of the model.

        Raises InputError on ids, segments, a length it cannot read, or an adapter that is not loaded.
        """
        adapter = self.adapter if adapter is None else adapter
        if not 1 <= len(ids) <= self.limit:
            raise InputError(f"the text has {len(ids)} tokens; the model reads 1 to {self.limit}")
        if not all(0 <= token < _MOST_IDS for token in ids):
            raise InputError("the text has a token that lies outside every vocabulary")
        if isinstance(self._runner, EncoderEngine):
            return self._runner.states(ids, segments if "token_type_ids" in self._inputs else None, adapter)
        tokens = np.asarray(ids, np.int64)[None]
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.asarray([segments or [0] * len(ids)], np.int64),
        }
        given = {name: feeds[name] for name in feeds if name in self._inputs}
        values = self._runner.run(given, _attend, add_to=self._terms.adding(adapter))
        states = values.get(STATES)
        if states is None or states.ndim != 3 or states.shape[:2] != tokens.shape:
            raise InputError(f"model.onnx: does not make {STATES} for every token")
        return states[0]

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """The numbers of texts that are best computed together, given how many tokens each has."""
        if isinstance(self._runner, EncoderEngine):
            return self._runner.groups(lengths)
        return [[number] for number in range(len(lengths))]

    def states_together(self, texts: Sequence[Ids], adapter: str | None = None) -> list[np.ndarray]:
        """states() of each of a group of texts, given as (ids, segments), to the bit. Raises InputError."""
        adapter = self.adapter if adapter is None else adapter
        if isinstance(self._runner, EncoderEngine) and len(texts) > 1:
            given = "token_type_ids" in self._inputs
            return self._runner.states_together(
                [(ids, segments if given else None) for ids, segments in texts], adapter
            )
        return [self.states(ids, segments, adapter) for ids, segments in texts]

    def held_bytes(self) -> int:
        """Memory it takes: weights (mapped ones, too), tables and buffers."""
        if isinstance(self._runner, EncoderEngine):
            return self._runner.held_bytes()
        return held_bytes(self._runner.arrays())

    def value(self, states: np.ndarray) -> np.ndarray:
        """What the graph makes of the states [tokens, hidden] of one text. Raises InputError."""
        mask = np.ones((1, len(states)), np.int64)
        (found,) = self._folder.given((self._made,), {STATES: states[None], "attention_mask": mask})
        return found


class TextEncoder(StatesModel):
    """An encoder with its tokenizer and its limit of tokens."""

    def __init__(
        self,
        folder: str | Path,
        activations: str = "int8",
        threads: int | None = None,
        adapters: Sequence[str] | None = (),
    ) -> None:
        """As StatesModel."""
        super().__init__(folder, VECTOR, activations, threads, adapters)
        self.prompts, self.default_prompt = read_prompts(self.folder)
        self.width = 0  # not known yet
        self.width = self.embed_ids([0]).size

    def embed(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """float32 [texts, width]. A text beyond `limit` tokens is cut there, as sentence-transformers does.

        prompt: the name of the one that goes before each text; None: that of the model.
        """
        ids = [self.encode(text, prompt=prompt) for text in texts]
        found = np.zeros((len(texts), self.width), np.float32)
        for group in self.groups([len(one) for one in ids]):
            found[group] = self.embed_together([ids[number] for number in group])
        return found

    def prompted(self, text: str, name: str | None = None) -> str:
        """The text behind the prompt of this name, or the model's own (None). Raises InputError on an unknown name."""
        name = name or self.default_prompt
        if name and name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise InputError(f"prompt name {name[:100]!r} is unknown; {PROMPTS} of the model has {known}")
        return self.prompts.get(name, "") + text

    def encode(self, text: str, cut: bool = True, prompt: str | None = None) -> list[int]:
        """Token ids with the prompt and the tokenizer's special tokens, cut at `limit`. prompt: as in embed().

        Raises InputError on a text without tokens, an unknown prompt, and with cut=False on a text beyond the limit.
        """
        text = self.prompted(text, prompt)
        if not cut and len(text.encode(errors="replace")) > self._most_bytes:  # not worth tokenizing
            raise InputError(f"the text has more than the {self.limit} tokens that the model reads")
        encoding = encode(self.tokenizer, text)
        if not encoding.ids:
            raise InputError("the text is empty: at least one token is needed")
        if encoding.overflowing and not cut:
            raise InputError(f"the text has more than the {self.limit} tokens that the model reads")
        return encoding.ids

    def embed_ids(self, ids: Sequence[int], adapter: str | None = None) -> np.ndarray:
        """The vector of one token sequence, float32 [width]. adapter: as in states().

        Raises InputError on ids or a length it cannot read, NotFiniteError on a vector that is no numbers.
        """
        return self._vector(self.states(ids, adapter=adapter))

    def embed_together(self, texts: Sequence[Sequence[int]], adapter: str | None = None) -> list[np.ndarray]:
        """embed_ids() of each of a group of texts (groups()), to the bit. Raises as it does."""
        return [self._vector(states) for states in self.states_together([(ids, None) for ids in texts], adapter)]

    def _vector(self, states: np.ndarray) -> np.ndarray:
        vector = self.value(states)
        if vector.shape != (1, self.width or vector.size) or vector.dtype != np.float32:
            raise InputError(f"model.onnx: does not make one {VECTOR} for one text")
        if not np.isfinite(vector).all():
            raise NotFiniteError("the model gives a vector that is NaN or infinite: its weights or sums exceed float32")
        return vector[0]


def _open(
    graph: Graph, activations: str, limit: int, threads: int | None, terms: Terms
) -> tuple[Interpreter | EncoderEngine, str]:
    if activations == "float32":
        return Interpreter(expand_products(graph)), "float32 activations were asked for"
    try:
        return EncoderEngine(expand_products(graph, keep=runs_directly), STATES, limit, threads, terms), ""
    except Unplannable as error:
        return Interpreter(expand_products(graph)), f"not planned: {error}"


def _attend(node: Node, inputs: list[Any]) -> np.ndarray:
    """ONNX Attention-23 for 3-D inputs of batch one, without a cache: [1, tokens, heads * head_dim]."""
    query, key, value, mask = inputs[:4]
    heads, kv_heads = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    tokens, head_dim = query.shape[1], query.shape[2] // heads
    if key.shape != value.shape or key.shape != (1, tokens, kv_heads * head_dim) or heads % kv_heads:
        raise ValueError("queries, keys and values do not fit the heads")
    repeat = heads // kv_heads
    grouped = query.reshape(tokens, kv_heads, repeat, head_dim).transpose(1, 2, 0, 3)
    grouped = np.ascontiguousarray(grouped).reshape(kv_heads, repeat * tokens, head_dim)
    keys, values = (a.reshape(tokens, kv_heads, head_dim).transpose(1, 0, 2) for a in (key, value))
    scores = grouped @ keys.transpose(0, 2, 1)
    scale = np.float32(node.attributes.get("scale", 1 / math.sqrt(head_dim)))
    visible = mask.reshape(mask.shape[-2], tokens)
    masked_softmax(scores, visible, 0, repeat, scale, causal=bool(node.attributes.get("is_causal", 0)))
    mixed = (scores @ values).reshape(kv_heads, repeat, tokens, head_dim)
    return np.ascontiguousarray(mixed.transpose(2, 0, 1, 3)).reshape(1, tokens, -1)


def _text_limit(folder: Path) -> int:
    """max_seq_length of sentence_bert_config.json; no limit where there is none."""
    if not (folder / TEXT_LIMIT).exists():
        return 2**31
    value = read_json(folder / TEXT_LIMIT).get("max_seq_length")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 2 else 2**31
