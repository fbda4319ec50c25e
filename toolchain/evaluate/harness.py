"""A model folder as a model of lm-evaluation-harness (EleutherAI), so that its tasks run on exactly what `run` runs.

    import lm_eval
    from toolchain.evaluate.harness import AthenaModel
    lm_eval.simple_evaluate(model=AthenaModel("OUT"), tasks=["arc_easy"])

`athena-export eval OUT --task arc_easy` does the same. Needs the extra `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from runtime_py.text.generation import GenerationRequest
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings
from runtime_py.text.tokenizing import encode
from toolchain.evaluate.multiple_choice import continuation_log_probability
from toolchain.evaluate.perplexity import Scorer

_DEFAULT_TOKENS = 256  # of an answer whose task names no limit


class AthenaModel(TemplateLM):
    """One model folder behind the harness's interface: log-likelihoods, rolling log-likelihoods, generation."""

    def __init__(
        self, folder: str | Path, activations: str = "int8", cache_bits: int = 16, bits: int | None = None
    ) -> None:
        super().__init__()
        self._generator = TextGenerator(folder, activations, cache_bits=cache_bits, bits=bits)
        self._scorer = _GeneratorScorer(self._generator)
        self.backend = "causal"

    @property
    def eot_token_id(self) -> int:
        return min(self._generator.stop, default=0)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache."""
        return str(self._generator.folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them unless told otherwise."""
        return list(encode(self._generator.tokenizer, string, add_special_tokens is not False).ids)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for _, context, continuation in tqdm(requests, disable=disable_tqdm, desc="Scoring"):
            room = max(self._generator.context - len(continuation), 1)
            found.append(continuation_log_probability(self._scorer, context[-room:], continuation))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that fill the context and do not overlap."""
        return [self._rolling(request.args[0]) for request in tqdm(requests, disable=disable_tqdm, desc="Scoring")]

    def _rolling(self, text: str) -> float:
        ids = self.tok_encode(text, add_special_tokens=False)
        total, room = 0.0, self._generator.context - 1
        before = [self.prefix_token_id]
        for part in _parts(ids, room):
            total += continuation_log_probability(self._scorer, before, part)[0]
            before = part[-1:]
        return total

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Generated texts, cut before the task's stop strings; prompts too long for the context lose their start."""
        return [self._generate(*request.args) for request in tqdm(requests, disable=disable_tqdm, desc="Generating")]

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        generator = self._generator
        until = options.get("until") or []
        tokens = min(int(options.get("max_gen_toks", _DEFAULT_TOKENS)), generator.context - 1)
        ids = self.tok_encode(prompt)[-(generator.context - tokens) :] or [self.prefix_token_id]
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
        request = GenerationRequest(
            prompt=tuple(ids),
            sampling=SamplingSettings(temperature),
            max_tokens=tokens,
            stop_tokens=generator.stop,
            rules=generator.rules,
            stop_strings=tuple([until] if isinstance(until, str) else until),
        )
        return "".join(text for _, text in generator.answer(request))


class _GeneratorScorer(Scorer):
    def __init__(self, generator: TextGenerator) -> None:
        self._session, self.vocab_size = generator.session, generator.session.vocab_size

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self._session.forward(self._session.new_state(), tokens)


def _parts(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])
