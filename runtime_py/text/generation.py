"""One answer as a sequence of small steps, so that several can take turns on one model.

A step is a chunk of the prompt or one token. Everything a step decides depends only on the request: not on which other
requests run, nor on how much of the prompt an earlier request left in the cache (engine.chunk_size says why), nor on
what was guessed: a step may compute guessed tokens behind the next one, and takes over those that come anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from runtime_py.engine.state import CHUNK, chunk_size
from runtime_py.load import Runner
from runtime_py.reference.stepping import Stepped
from runtime_py.speculation.speculation import Speculation
from runtime_py.text.logit_processors import NEUTRAL, LogitProcessor, LogitRules
from runtime_py.text.sampling import Sampler, SamplingSettings
from runtime_py.text.stream import TextStream
from runtime_py.text.tokenizing import boundary

IMPOSSIBLE = -9999.0  # log probability reported for a token that the model rules out, as OpenAI does: JSON has no -inf


class Constraint(Protocol):
    """What the tokens of one answer are held to (runtime_py/structured)."""

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The logits to draw from: -inf for what may not come. Raises InputError when nothing may."""

    def note(self, token: int) -> bool:
        """Tell which token was drawn; whether the answer is complete with it. Raises InputError."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate. Token ids are checked by the caller; stop_tokens end the answer and are not shown."""

    prompt: tuple[int, ...]  # at least one token
    sampling: SamplingSettings
    max_tokens: int  # at least one; prompt and answer fit the context
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    top_logprobs: int | None = None  # alternatives to report per token, None: no log probabilities at all
    rules: LogitRules = NEUTRAL  # what changes the logits before sampling
    constraint: Callable[[frozenset[int]], Constraint] | None = None  # called once with the stop tokens
    shown: frozenset[str] = frozenset()  # special tokens that the text has, each behind decoder_stages.MARK
    adapter: str = ""  # of the runner's adapters, whose terms the tokens get


@dataclass(frozen=True)
class Piece:
    """One generated token. Its text may come with a later one: a split character or a possible stop string waits."""

    token: int
    text: str
    logprob: float | None = None  # natural logarithm of the model's own probability, before rules and temperature
    alternatives: tuple[tuple[int, float], ...] = ()  # most likely tokens with their log probabilities
    offset: int = 0  # with log probabilities: characters of the answer before this token


class Generation:
    """The running answer to one request. Call step() until `finish_reason` is set, then take `tail`."""

    def __init__(
        self,
        request: GenerationRequest,
        runner: Runner,
        tokenizer: Tokenizer,
        state: Any,
        reused: int = 0,
        speculation: Speculation | None = None,
    ) -> None:
        """state: a cache that holds the prompt's first `reused` tokens, which must leave two of them to compute;
        they are of the same adapter.

        Afterwards `reused` says how many of them are not computed again. speculation: of this runner; None: nothing is
        guessed.
        """
        self.request, self._runner, self.state = request, runner, state
        self._speculation = speculation
        self._guesser = speculation.guesser() if speculation else None
        self._whole = list(request.prompt)  # and the answer
        self._sampler = Sampler(request.sampling)
        self._processor: LogitProcessor | None = None
        if request.rules != NEUTRAL:
            self._processor = LogitProcessor(request.rules, request.prompt, request.stop_tokens, runner.vocab_size)
        self._constraint = request.constraint(request.stop_tokens) if request.constraint else None
        self._tokenizer = tokenizer
        self._done = self.reused = runner.rewind(state, reused)
        runner.adapt(state, request.adapter)
        self.tokens: list[int] = []
        self.finish_reason = ""  # "stop" or "length" once finished
        self.tail = ""  # text that was held back until the end

    @cached_property
    def _text(self) -> TextStream:
        """Made with the first token: it reads the whole prompt."""
        return TextStream(self._tokenizer, self.request.prompt, self.request.stop_strings, self.request.shown)

    @property
    def answering(self) -> bool:
        """Whether the prompt is done and a token is to be computed: take() its logits. Else step()."""
        return bool(self.tokens) and not self.finish_reason

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be computed."""
        return len(self.request.prompt) - self._done

    def look(self) -> list[float]:
        """Guess what follows the token to compute; the chance of each that it and all before it are right."""
        if self._guesser is None:
            return []
        left = min(self.request.max_tokens - len(self.tokens) - 1, self._runner.most_together - 1)
        return self._guesser.look(self._whole, left) if left > 0 else []

    def run(self, guessed: int = 0) -> list[int]:
        """The token to compute, and the first tokens of what look() guessed behind it."""
        return self.tokens[-1:] + (self._guesser.guessed(guessed) if self._guesser and guessed else [])

    def take(self, run: Sequence[int], rows: Sequence[Stepped]) -> Iterator[Piece]:
        """Go on from what Runner.advance gave for run(): the pieces of the answer, at least one unless it ends.

        Guesses from the first wrong one on are taken out of the state. Raises what rows have in place of logits where
        the answer comes to it.
        """
        start, used = self.state.length - sum(isinstance(row, np.ndarray) for row in rows), 0
        try:
            for row in rows:
                if not isinstance(row, np.ndarray):
                    raise row
                used += 1
                piece = self._choose(row)
                if piece is not None:
                    yield piece
                if self.finish_reason or used == len(run) or self.tokens[-1] != run[used]:
                    break
        finally:
            if self._speculation and used > 1:
                self._speculation.counts.accepted += used - 1
            if self.state.length > start + used:
                self._runner.rewind(self.state, start + used)

    def pieces(self) -> Iterator[Piece]:
        """Compute a chunk of the prompt, or a token and what is guessed behind it."""
        if self.answering and self._speculation and self._guesser:
            run = self.run(self._speculation.lengths([self.look()])[0])
            yield from self.take(run, self._speculation.advance([self.state], [run])[0])
        else:
            piece = self.step()
            if piece is not None:
                yield piece

    def step(self, most: int = CHUNK) -> Piece | None:
        """Compute one chunk of the prompt, of so many tokens at most (None until its last), or one token."""
        prompt = self.request.prompt
        if self._done < len(prompt):
            chunk = prompt[self._done : self._done + chunk_size(len(prompt) - self._done, most)]
            logits = self._runner.forward(self.state, chunk, last_only=True)
            self._done += len(chunk)
            if self._done < len(prompt):
                return None
        else:
            logits = self._runner.forward(self.state, self.tokens[-1:], last_only=True)
        return self._choose(logits[-1])

    def _choose(self, logits: np.ndarray) -> Piece | None:
        request = self.request
        processor, constraint = self._processor, self._constraint
        changed = processor.apply(logits) if processor else logits
        token = self._sampler.next(constraint.apply(changed) if constraint else changed)
        if token in request.stop_tokens:
            self._finish("stop")
            return None
        self.tokens.append(token)
        self._whole.append(token)
        if self._guesser:
            self._guesser.note(token)
        if processor:
            processor.note(token)
        complete = constraint.note(token) if constraint else False
        with boundary():
            text, offset = (
                self._text.push_placed(token) if request.top_logprobs is not None else (self._text.push(token), 0)
            )
        logprob: float | None = None
        alternatives: tuple[tuple[int, float], ...] = ()
        if request.top_logprobs is not None:
            logprob, alternatives = _log_probabilities(logits, token, request.top_logprobs)
        if self._text.stopped or complete:
            self._finish("stop")
        elif len(self.tokens) == request.max_tokens:
            self._finish("length")
        return Piece(token, text, logprob, alternatives, offset)

    def interrupt(self) -> None:
        """End the answer here: `tail` becomes what was held back."""
        if not self.finish_reason:
            self._finish("stop")

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        with boundary():
            self.tail = self._text.flush()
        if self._text.stopped:
            self.finish_reason = "stop"

    def cached_tokens(self, answers: bool) -> list[int]:
        """Tokens whose cache a later request may use; with `answers` also generated ones.

        Prompt tokens computed together give the same cache in every request; a single token is summed in another order
        (a prompt of one, generated tokens), which may turn a near tie.
        """
        known = list(self.request.prompt[: min(self._done, self.state.length)])
        if answers:
            return (known + self.tokens)[: self.state.length] if self._done == len(self.request.prompt) else known
        return known if len(self.request.prompt) > 1 else []


def prompted(clean: int, reused: int, length: int) -> int:
    """How many first tokens of a prompt of `length` have been computed as a prompt, not as an answer.

    reused: taken from a cache whose first `clean` tokens were.
    """
    return length if reused <= clean else clean


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens a and b share at their start."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def reusable(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """Cached tokens that a request for `prompt` can start from: at least two are computed again."""
    return max(min(common_prefix(cached, prompt), len(prompt) - 2), 0)


def _log_probabilities(logits: np.ndarray, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    count = min(count, x.size)
    best = np.argpartition(-x, count - 1)[:count] if count else np.empty(0, np.int64)
    best = best[np.argsort(-x[best], kind="stable")]
    x[np.isneginf(x)] = IMPOSSIBLE
    return float(x[token]), tuple((int(i), float(x[i])) for i in best)
