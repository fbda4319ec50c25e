"""What a model's generation_config.json asks for, and what of it this runtime does not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artefacts.generation_config import GENERATION, read_generation_config
from export.contract.errors import InputError
from runtime_py.text.logit_processors import MOST, LogitRules
from runtime_py.text.sampling import SamplingSettings

SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p"})  # apply where do_sample is true
RULES = frozenset(  # apply always, as in transformers
    {
        "repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "min_length",
        "min_new_tokens",
        "suppress_tokens",
        "begin_suppress_tokens",
    }
)
# Would change the answer and are not there, each with the values that change nothing beside null.
_SAMPLING_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
}
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **_SAMPLING_UNSUPPORTED,
    "max_time": (),
    "stop_strings": ([],),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
}


@dataclass(frozen=True)
class Recommendation:
    """sampling: the values that are numbers, by name, of a file that asks for sampling; rules: apply always."""

    sampling: Mapping[str, float]
    rules: LogitRules
    unsupported: tuple[str, ...]  # names of what changes the answer in transformers and not here


def recommendation(folder: Path, stops: Iterable[int] = ()) -> Recommendation:
    """What the folder's file asks for; nothing when there is no file.

    stops: end-of-sequence tokens, which a bad word cannot forbid. Raises InputError naming the field that is wrong.
    """
    path = folder / GENERATION
    config = read_generation_config(folder)
    samples = config.get("do_sample") is True
    unsupported = [
        name
        for name, neutral in UNSUPPORTED.items()
        if config.get(name) is not None
        and config[name] not in neutral
        and (samples or name not in _SAMPLING_UNSUPPORTED)
    ]
    sampling = {name: config[name] for name in SAMPLING if samples and config.get(name) is not None}
    try:
        if not 0 <= sampling.get("top_k", 0) <= MOST:
            raise InputError(f"top_k must be 0 to {MOST}, not {sampling['top_k']}")
        SamplingSettings(**{name: value for name, value in sampling.items() if name != "top_k"})
        rules = _rules(config, frozenset(stops))
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('--')}") from None
    return Recommendation(sampling, rules, tuple(unsupported))


def _rules(config: Mapping[str, Any], stops: frozenset[int]) -> LogitRules:
    least = _count(config, "min_new_tokens")
    words = config.get("bad_words_ids")
    if words is not None and not isinstance(words, list):
        raise InputError("bad_words_ids must be a list of lists of token ids")
    bad = [_tokens(word, "bad_words_ids") for word in words or []]
    penalty = config.get("repetition_penalty")
    if penalty is not None and type(penalty) not in (int, float):
        raise InputError(f"repetition_penalty must be a number, not {str(penalty)[:50]!r}")
    return LogitRules(
        repetition_penalty=1.0 if penalty is None else penalty,
        min_tokens=least or 0,
        min_length=(_count(config, "min_length") or 0) if least is None else 0,
        no_repeat_ngram_size=_count(config, "no_repeat_ngram_size") or 0,
        bad_words_ids=tuple(found for found in bad if found and not (len(found) == 1 and found[0] in stops)),
        suppress_tokens=_tokens(config.get("suppress_tokens"), "suppress_tokens"),
        begin_suppress_tokens=_tokens(config.get("begin_suppress_tokens"), "begin_suppress_tokens"),
    )


def _count(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is not None and type(value) is not int:
        raise InputError(f"{name} must be a whole number, not {str(value)[:50]!r}")
    return value


def _tokens(value: Any, name: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{name} must be a list of token ids")
    return tuple(value)
