"""The special tokens by name that templates see, read from a tokenizer's files with the precedence of transformers.

A folder made by `export` names all of them in tokenizer_config.json (toolchain/source/tokenizer.py); in other
folders the tokens that only the code of a tokenizer class knows are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.files.access import read_json

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Name -> text of the standard and the model-specific tokens, such as image_token.

    special_tokens_map.json counts where tokenizer_config.json has no added_tokens_decoder, and wins there for the
    standard ones; a token that is null does not exist. Raises InputError when a file is not a JSON object.
    """
    config, legacy = (_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    legacy = {} if "added_tokens_decoder" in config else legacy
    merged = {**config, **legacy}
    flat = {name: value for name, value in config.items() if _is_specific(name) and isinstance(value, str)}
    explicit = {**flat, **_table(config, "extra_special_tokens")} or _table(config, "model_specific_special_tokens")
    named = {name: merged.get(name) for name in (*STANDARD, *filter(_is_specific, merged))}
    values = {**named, **explicit, **_table(legacy, "extra_special_tokens")}
    return {name: text for name, value in values.items() if (text := _text(value)) is not None}


def splits_special_tokens(folder: Path) -> bool:
    """Whether special tokens inside a text are split like any other text: tokenizer.json cannot say it."""
    return _object(folder / "tokenizer_config.json").get("split_special_tokens") is True


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _is_specific(name: str) -> bool:
    return name.endswith("_token") and name not in STANDARD


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name)
    return table if isinstance(table, dict) else {}


def _text(value: Any) -> str | None:
    """A token is stored as text, or as an object with its text under `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
