"""What changes logits before a token is drawn: biases, penalties and forbidden tokens. Pure NumPy.

The order is fixed. logit_bias comes first, then repetition_penalty, then frequency_penalty and presence_penalty (as in
vLLM), last the tokens that are forbidden, so that nothing lifts a ban. Temperature, top-k, top-p and min-p follow
(sampling.py, in the order of transformers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.contract.errors import InputError

RANGES: Mapping[str, tuple[float, float]] = {
    "repetition_penalty": (0.01, 100.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
BIAS = 100.0  # largest absolute value of a bias; as much as forbids or forces a token
MOST = 2**31 - 1  # of a count of tokens


@dataclass(frozen=True)
class LogitRules:
    """What is asked of the logits. The defaults change nothing.

    repetition_penalty divides positive and multiplies negative logits of the tokens of prompt and answer, as
    transformers does; frequency_penalty is subtracted for every time the answer has a token, presence_penalty once.
    min_tokens: stop tokens are forbidden before the answer has that many; min_length: prompt and answer together.
    The rest is named as in generation_config.json and does what transformers does with it.
    """

    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added)
    min_tokens: int = 0
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError naming the option that is out of range."""
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"--{name.replace('_', '-')} must be {low:g} to {high:g}, not {getattr(self, name)}")
        for token, bias in self.logit_bias:
            if not -BIAS <= bias <= BIAS:
                raise InputError(f"--logit-bias must be {-BIAS:g} to {BIAS:g}, not {bias} (token {token})")
        for name in ("min_tokens", "min_length", "no_repeat_ngram_size"):
            if not 0 <= getattr(self, name) <= MOST:
                raise InputError(f"--{name.replace('_', '-')} must be 0 to {MOST}, not {getattr(self, name)}")

    def with_asked(self, **asked: Any) -> LogitRules:
        """These rules with the values that were asked for; None stands for a value that was not.

        A minimum that was asked for also replaces min_length. Raises InputError as the constructor does.
        """
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if "min_tokens" in given:
            given["min_length"] = 0
        return replace(self, **given)


NEUTRAL = LogitRules()


class LogitProcessor:
    """The rules at work on one answer. Call apply() for every token, then note() with the token that was drawn."""

    def __init__(self, rules: LogitRules, prompt: Sequence[int], stops: Iterable[int], vocabulary: int) -> None:
        """prompt: its token ids; stops: the tokens that end the answer; vocabulary: the number of logits."""
        self._rules, self._size, self._prompt_length = rules, vocabulary, len(prompt)
        self._ids: list[int] = []
        self._stops = self._inside(stops)
        self._suppressed = self._inside(rules.suppress_tokens)
        self._first = self._inside(rules.begin_suppress_tokens)
        self._biased = np.array([token for token, _ in rules.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in rules.logit_bias], np.float32)
        self._seen = np.zeros(vocabulary, bool)  # tokens of prompt and answer
        self._counts = np.zeros(vocabulary, np.float32)  # of the answer's tokens
        self._followers: dict[tuple[int, ...], list[int]] = {}  # what came after n - 1 tokens, for no_repeat_ngram_size
        for token in prompt:
            self._append(token)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The logits float32 [vocabulary] to draw from; those given stay as they are.

        Raises InputError when every token is forbidden.
        """
        rules, out = self._rules, logits.astype(np.float32)
        if self._biased.size:
            out[self._biased] += self._bias
        if rules.repetition_penalty != 1.0:
            seen = out[self._seen]
            penalty = np.float32(rules.repetition_penalty)
            out[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        if rules.frequency_penalty or rules.presence_penalty:
            present = (self._counts > 0).astype(np.float32)
            out -= np.float32(rules.frequency_penalty) * self._counts + np.float32(rules.presence_penalty) * present
        banned = self._banned()
        if banned.size:
            out[banned] = -np.inf
            if out.max() == -np.inf:
                raise InputError("every token is forbidden: by suppressed tokens, bad words, or a minimum length")
        return out

    def note(self, token: int) -> None:
        """Tell which token was drawn."""
        self._counts[token] += 1
        self._append(token)

    def _append(self, token: int) -> None:
        self._ids.append(token)
        if token < self._size:
            self._seen[token] = True
        size = self._rules.no_repeat_ngram_size
        if 0 < size <= len(self._ids):
            start = len(self._ids) - size
            self._followers.setdefault(tuple(self._ids[start:-1]), []).append(token)

    def _banned(self) -> np.ndarray:
        rules, length = self._rules, len(self._ids)
        made = length - self._prompt_length
        parts = [self._suppressed]
        if made == 0:
            parts.append(self._first)
        if made < rules.min_tokens or length < rules.min_length:
            parts.append(self._stops)
        if 0 < rules.no_repeat_ngram_size <= length:
            last = tuple(self._ids[length - rules.no_repeat_ngram_size + 1 :])
            parts.append(self._inside(self._followers.get(last, ())))
        if rules.bad_words_ids:
            parts.append(self._inside(word[-1] for word in rules.bad_words_ids if self._ends_with(word[:-1])))
        return np.concatenate(parts)

    def _ends_with(self, tokens: tuple[int, ...]) -> bool:
        return len(tokens) <= len(self._ids) and tuple(self._ids[len(self._ids) - len(tokens) :]) == tokens

    def _inside(self, tokens: Iterable[int]) -> np.ndarray:
        """Those of the tokens that the vocabulary has; no other could be drawn."""
        return np.array([token for token in tokens if 0 <= token < self._size], np.int64)
