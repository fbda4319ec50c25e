"""generation_config.json: its numbers are checked before anything is computed with them, and before a model is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.files.access import read_json
from export.files.json_shape import FINITE, FLAG, Maybe, check

GENERATION = "generation_config.json"
_FIELDS = {
    "do_sample?": Maybe(FLAG),
    **dict.fromkeys(["temperature?", "top_k?", "top_p?", "min_p?", "repetition_penalty?"], Maybe(FINITE)),
}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The folder's file, {} where there is none that can be read, as in transformers.

    Raises InputError naming the field that is of another type.
    """
    path = folder / GENERATION
    try:
        config: dict[str, Any] = read_json(path)
    except InputError:
        return {}
    check(config, _FIELDS, f"{path}: ")
    end_tokens(config, path)
    return config


def end_tokens(config: Mapping[str, Any], path: Path) -> list[int]:
    """The end-of-sequence ids that a config names. Raises InputError when they are no integers."""
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(token) is int and abs(token) < 2**63 for token in ids):
        raise InputError(f"{path}: eos_token_id must be an integer or a list of integers")
    return ids
