"""Text in, text out: a model folder with its tokenizer, its limits and its stop tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from export.artefacts.generation_config import GENERATION, end_tokens, ignored
from export.contract.errors import InputError
from export.files.access import MAX_JSON, checked_path, read_json
from runtime_py.load import open_model
from runtime_py.speculation.speculation import AUTO, Speculation, checked
from runtime_py.text.generation import Constraint, Generation, GenerationRequest
from runtime_py.text.generation_config import recommendation
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings
from runtime_py.text.special_tokens import splits_special_tokens
from runtime_py.text.tokenizing import TooLong, encode_prompt, most_bytes, open_tokenizer
from runtime_py.widths.schedule import Schedule

if TYPE_CHECKING:
    from runtime_py.prompt_cache.store import PromptCache

_MOST_POSITIONS = 1 << 24  # as export/graph/archs/_config.py


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json. Raises InputError when it is missing or broken."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{path}: this file is missing; the folder needs its tokenizer to handle text")
    tokenizer = open_tokenizer(checked_path(path, MAX_JSON, folder))
    tokenizer.encode_special_tokens = splits_special_tokens(folder)
    return tokenizer


def stop_tokens(folder: Path) -> frozenset[int]:
    """End-of-sequence ids from generation_config.json, and only without that file from config.json, as transformers.

    Empty when the file names none. Raises InputError when they are not integers.
    """
    for path in (folder / GENERATION, folder / "config.json"):
        try:
            config = read_json(path)
        except InputError:
            continue
        return frozenset(end_tokens(config, path))
    return frozenset()


def context_length(folder: Path) -> int:
    """Positions the model was exported for. Raises InputError when neither genai_config.json nor config.json says.

    The first is what `export` writes for generation; families, which read the second, take longer to import than a
    small model to answer.
    """
    config = read_json(folder / "config.json")
    length = _genai_context(folder)
    if length is not None:
        return length
    from export.graph.archs import is_supported, model_spec

    if is_supported(config.get("model_type")):
        return model_spec(config).context_length
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(name), int) and config[name] > 0:
            return config[name]
    raise InputError(f"{folder / 'config.json'}: max_position_embeddings is missing")


def _genai_context(folder: Path) -> int | None:
    """`context_length` of genai_config.json; None where there is none."""
    try:
        model = read_json(folder / "genai_config.json").get("model")
    except InputError:
        return None
    length = model.get("context_length") if isinstance(model, dict) else None
    return length if type(length) is int and 0 < length <= _MOST_POSITIONS else None


def default_sampling(
    folder: Path,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    min_p: float | None = None,
) -> SamplingSettings:
    """What the user chose, else what generation_config.json recommends, else temperature 0.7 and top_p 0.95.

    Raises InputError when a value is out of range.
    """
    recommended = recommendation(folder).sampling

    def pick(given: float | None, name: str, fallback: float) -> float:
        return recommended.get(name, fallback) if given is None else given

    return SamplingSettings(
        pick(temperature, "temperature", 0.7),
        int(pick(top_k, "top_k", 0)),
        pick(top_p, "top_p", 0.95),
        seed,
        pick(min_p, "min_p", 0.0),
    )


class TextGenerator:
    """A session with its tokenizer and limits, for prompts given as text."""

    def __init__(
        self,
        folder: str | Path,
        activations: str = "int8",
        threads: int | None = None,
        mapped: bool | None = None,
        processors: Sequence[int] = (),
        adapters: Sequence[str] | None = (),
        speculate: str = AUTO,
        cache_bits: int = 16,
        bits: int | Schedule | str | None = None,
    ) -> None:
        """The options: see load.py; speculate: see speculation.py. Raises InputError when the folder is incomplete.

        `rules` are those on logits that the model's generation_config.json asks for, `unsupported` the names of what it
        asks for in vain, `recommended` its values for sampling, `ignored` why the file is not used. `most_bytes`: of a
        prompt that can fit the context. `adapter`: whose terms stream() adds, the first of `adapters` to begin with.
        """
        self.folder = Path(folder)
        checked(speculate)
        self.session, self.interpreted = open_model(
            self.folder, activations, threads, mapped, processors, adapters, cache_bits, bits
        )
        self.adapter = adapters[0] if adapters else ""
        self.speculation = Speculation(self.session, speculate)
        self.tokenizer = load_tokenizer(self.folder)
        self.stop = stop_tokens(self.folder)
        asked = recommendation(self.folder, self.stop)
        self.rules, self.unsupported, self.recommended = asked.rules, asked.unsupported, asked.sampling
        self.ignored = ignored(self.folder)
        self.context = context_length(self.folder)
        self.most_bytes = most_bytes(self.tokenizer, self.context)
        self.prompt_cache: PromptCache | None = None  # where prompts are looked for and kept

    def limit_context(self, tokens: int) -> None:
        """Give prompt and answer together no more than so many tokens."""
        self.context = min(self.context, tokens)
        self.most_bytes = most_bytes(self.tokenizer, self.context)

    def encode(self, prompt: str) -> list[int]:
        """Prompt ids with the tokenizer's own special tokens. Raises InputError for an empty prompt or one too long."""
        try:
            ids = encode_prompt(self.tokenizer, prompt, self.most_bytes)
        except TooLong as error:
            raise TooLong(f"{error}; the model's context is {self.context}") from None
        if not ids:
            raise InputError("the prompt is empty: at least one token is needed")
        if len(ids) >= self.context:
            raise InputError(f"the prompt has {len(ids)} tokens, the model's context is {self.context}")
        return ids

    def stream(
        self,
        prompt: str,
        settings: SamplingSettings,
        max_tokens: int,
        rules: LogitRules | None = None,
        stop: frozenset[int] | None = None,
        stop_strings: tuple[str, ...] = (),
        constraint: Callable[[frozenset[int]], Constraint] | None = None,
    ) -> Iterator[tuple[int | None, str]]:
        """Yield (token, new text); text comes when it is complete, so a split multi-byte character waits.

        rules, stop: None for the model's own rules on logits and end-of-sequence tokens. The last pair may have no
        token, only text that was still held back.
        """
        ids = self.encode(prompt)
        request = GenerationRequest(
            prompt=tuple(ids),
            sampling=settings,
            max_tokens=min(max_tokens, self.context - len(ids)),
            stop_tokens=self.stop if stop is None else stop,
            stop_strings=stop_strings,
            rules=self.rules if rules is None else rules,
            constraint=constraint,
            adapter=self.adapter,
        )
        yield from self.answer(request)

    def answer(self, request: GenerationRequest) -> Iterator[tuple[int | None, str]]:
        """stream() for a request that starts with what the prompt cache has of it."""
        state, kept = self.session.new_state(), self.prompt_cache
        reused = kept.restore(state, request.prompt, adapter=request.adapter) if kept else 0
        generation = Generation(request, self.session, self.tokenizer, state, reused, self.speculation)
        while not generation.finish_reason:
            for piece in generation.pieces():
                yield piece.token, piece.text
        if generation.tail:
            yield None, generation.tail
        if kept:
            kept.keep(state, generation.cached_tokens(answers=False))
