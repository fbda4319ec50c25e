"""The OpenAI API's requests, checked field by field. Whatever is wrong becomes an ApiError that names the field.

Fields that would change the answer and are not supported are refused, not ignored, and so are unknown ones, unless the
server was told to ignore those (fields.py is the table).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.adapters import asked_model
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.forms import form
from runtime_py.serving.requests.values import integer, number, optional, text
from runtime_py.structured.forms import Form
from runtime_py.text.logit_processors import BIAS, MOST, RANGES, LogitRules
from runtime_py.text.sampling import SamplingSettings

_MAX_STOPS, _STOP_LENGTH = 8, 256
_MAX_CHOICES = 16


@dataclass(frozen=True)
class Options:
    """What completions and chat completions have in common."""

    sampling: SamplingSettings
    rules: LogitRules
    max_tokens: int | None  # None: as many as fit
    stop: tuple[str, ...]
    stop_tokens: frozenset[int]  # beside the model's own
    ignore_eos: bool  # the model's own do not end the answer
    choices: int
    stream: bool
    include_usage: bool  # in a stream's last chunk
    top_logprobs: int | None
    form: Form | None = None  # what the answer's text is held to
    model: str = ""  # as the request names it
    adapter: str = ""

    def sampling_of(self, choice: int) -> SamplingSettings:
        """Each choice draws with a seed of its own; the first as it would alone."""
        return replace(self.sampling, seed=self.sampling.seed + choice)


@dataclass(frozen=True)
class Served:
    """What requests are checked against."""

    model: str
    vocabulary: int
    rules: LogitRules  # where a request does not say otherwise
    ignore_unknown: bool
    most_choices: int  # that can run and wait together
    adapters: tuple[str, ...] = ()


def options(body: Mapping[str, Any], served: Served, chat: bool, default_max_tokens: int | None) -> Options:
    """The common fields. Raises ApiError naming the first field that is wrong, not supported or not known."""
    model, adapter = asked_model(body, served.model, served.adapters)
    fields.check(body, fields.CHAT if chat else fields.COMPLETIONS, served.ignore_unknown)
    stream = optional(body, "stream", bool, False)
    stream_options = optional(body, "stream_options", dict, {})
    fields.check(stream_options, fields.STREAM_OPTIONS, served.ignore_unknown, "stream_options.")
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    max_tokens = next((n for n in (integer(body, name, None, 1, 2**31) for name in names) if n), default_max_tokens)
    return Options(
        sampling=_sampling(body),
        rules=_rules(body, served, max_tokens),
        max_tokens=max_tokens,
        stop=_stop(body.get("stop")),
        stop_tokens=_stop_tokens(body, served.vocabulary),
        ignore_eos=optional(body, "ignore_eos", bool, False),
        choices=_choices(body, served.most_choices),
        stream=stream,
        include_usage=optional(stream_options, "include_usage", bool, False, "stream_options.") and stream,
        top_logprobs=_logprobs(body, chat),
        form=form(body),
        model=model,
        adapter=adapter,
    )


def check_model(body: Mapping[str, Any], model: str) -> None:
    """Raises ApiError when another model is asked for."""
    asked_model(body, model, ())


def prompt(body: Mapping[str, Any]) -> str | list[int]:
    """The prompt of a completion: a text, or token ids. Raises ApiError."""
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return text(value, "prompt")
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    if isinstance(value, list) and len(value) > 1:
        raise ApiError(400, "one prompt a request: send several requests, they share the model", "prompt")
    raise ApiError(400, "prompt must be a text or a list of token ids", "prompt")


def _sampling(body: Mapping[str, Any]) -> SamplingSettings:
    seed = integer(body, "seed", None, -(2**63), 2**63 - 1)
    return SamplingSettings(
        temperature=number(body, "temperature", 1.0, 0.0, 2.0),
        top_k=max(integer(body, "top_k", 0, -1, 2**31) or 0, 0),  # vLLM's clients write -1 for all
        top_p=number(body, "top_p", 1.0, 1e-9, 1.0),
        min_p=number(body, "min_p", 0.0, 0.0, 1.0),
        seed=secrets.randbits(31) if seed is None else abs(seed),
    )


def _rules(body: Mapping[str, Any], served: Served, max_tokens: int | None) -> LogitRules:
    least = integer(body, "min_tokens", None, 0, MOST)
    if least is not None and max_tokens is not None and least > max_tokens:
        raise ApiError(400, f"min_tokens is {least}, more than the {max_tokens} of max_tokens", "min_tokens")
    numbers = {
        name: None if body.get(name) is None else number(body, name, 0.0, *between) for name, between in RANGES.items()
    }
    return served.rules.with_asked(**numbers, min_tokens=least, logit_bias=_logit_bias(body, served.vocabulary))


def _logit_bias(body: Mapping[str, Any], vocabulary: int) -> tuple[tuple[int, float], ...] | None:
    found = []
    for key, bias in optional(body, "logit_bias", dict, {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        if not 0 <= token < vocabulary:
            message = f"logit_bias has a key that is no token id from 0 to {vocabulary - 1}: {key[:50]!r}"
            raise ApiError(400, message, "logit_bias")
        if type(bias) not in (int, float) or not -BIAS <= bias <= BIAS:
            raise ApiError(400, f"logit_bias must hold numbers from {-BIAS:g} to {BIAS:g}", "logit_bias")
        found.append((token, float(bias)))
    if len({token for token, _ in found}) < len(found):
        raise ApiError(400, "logit_bias names a token twice", "logit_bias")
    return tuple(found) or None


def _stop_tokens(body: Mapping[str, Any], vocabulary: int) -> frozenset[int]:
    found = body.get("stop_token_ids")
    if found is None:
        return frozenset()
    if not isinstance(found, list) or not all(type(token) is int and 0 <= token < vocabulary for token in found):
        message = f"stop_token_ids must be a list of token ids from 0 to {vocabulary - 1}"
        raise ApiError(400, message, "stop_token_ids")
    return frozenset(found)


def _choices(body: Mapping[str, Any], most: int) -> int:
    count = integer(body, "n", 1, 1, min(_MAX_CHOICES, most)) or 1
    if integer(body, "best_of", count, 1, MOST) != count:
        raise ApiError(400, f"best_of other than n ({count}) is not supported by this server", "best_of", "unsupported")
    return count


def _stop(value: Any) -> tuple[str, ...]:
    found: Sequence[Any] = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(s, str) and 0 < len(s) <= _STOP_LENGTH for s in found):
        raise ApiError(400, f"stop must be a text or a list of texts of 1 to {_STOP_LENGTH} characters", "stop")
    if len(found) > _MAX_STOPS:
        raise ApiError(400, f"stop has {len(found)} entries; at most {_MAX_STOPS} are accepted", "stop")
    return tuple(text(one, "stop") for one in found)


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return integer(body, "logprobs", None, 0, 20)
    wanted, top = optional(body, "logprobs", bool, False), integer(body, "top_logprobs", None, 0, 20)
    if top and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None
