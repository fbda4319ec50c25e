"""A source folder's tokenizer as transformers builds it, in the files that the runtime reads without transformers.

Tokenizer classes rebuild what tokenizer.json says (split rules, the tokens put around a text), add tokens that stand in
other files, and know special tokens of their own. So the tokenizer is built once here, from local files and never with
code of the folder; the runtime gets the result.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.contract.errors import InputError
from export.files.access import MAX_JSON, checked_path, read_json, write_bytes, write_json
from export.files.foreign import reason
from runtime_py.text.special_tokens import STANDARD, read_special_tokens
from runtime_py.text.tokenizer_limits import check_tokenizer
from runtime_py.text.tokenizing import boundary, encode, open_tokenizer, parsed_tokenizer

_VERSIONS = "fast_tokenizer_files"  # names of other tokenizer.json files, by versions of transformers
_READ = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*", "vocab*", "additional_chat_templates/*")
_SAMPLES = (
    "Hello world",
    " The 12 quick\n\tfoxes, don't (jump)!",
    "Grüße 世界 😀 e\u0301 <s> [INST]",
    "\x00\x7f\u0378\uffff",
)


@dataclass(frozen=True)
class BuiltTokenizer:
    """What transformers makes of a folder."""

    text: str  # tokenizer.json
    tokens: dict[str, str]  # special tokens by name


def source_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that transformers would use, or tokenizer.json as it is where transformers cannot build one.

    Raises InputError when there is neither.
    """
    built = _build(folder)
    if isinstance(built, BuiltTokenizer):
        return parsed_tokenizer(built.text, folder / "tokenizer.json")
    return _file(folder, built)


def write_built_tokenizer(source: Path, destination: Path) -> None:
    """Make the tokenizer files in `destination`, copies of the source's, say what transformers makes of them.

    Files that say so already stay as they are. Raises InputError as source_tokenizer does.
    """
    built = _build(source)
    if not isinstance(built, BuiltTokenizer):
        _file(source, built)
        print(f"[tokenizer files are taken as they are: transformers cannot build the tokenizer ({built})]",
              file=sys.stderr)  # fmt: skip
        return
    path = destination / "tokenizer.json"
    if not path.is_file() or not _same(_file(destination, "").to_str(), built.text):
        write_bytes(path, built.text.encode())
    config = destination / "tokenizer_config.json"
    if config.is_file() and _VERSIONS in read_json(config):  # tokenizer.json is the chosen one now
        write_json(config, {name: value for name, value in read_json(config).items() if name != _VERSIONS})
    if read_special_tokens(destination) != built.tokens:
        _name_tokens(destination, built.tokens)


def _build(folder: Path) -> BuiltTokenizer | str:
    """The tokenizer, or why transformers cannot build it."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    _check_files(folder)
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with boundary(folder, "refused"):  # whatever the many classes raise for a folder that is not theirs
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            backend = getattr(tokenizer, "backend_tokenizer", None)
            if backend is not None:
                check_tokenizer(backend, folder / "tokenizer.json")
            ids = [tokenizer.encode(sample, add_special_tokens=False) for sample in _SAMPLES]  # some fail only here
            if backend is not None:
                return BuiltTokenizer(backend.to_str(), dict(tokenizer.special_tokens_map))
            name = type(tokenizer).__name__
    except (InputError, ImportError) as error:
        return reason(error.__cause__ or error)
    finally:
        logging.set_verbosity(before)
    file = _file(folder, f"{name} has none")
    if [encode(file, sample, special=False).ids for sample in _SAMPLES] != ids:
        raise InputError(
            f"{folder / 'tokenizer.json'}: splits text in another way than {name}, which transformers uses"
        )
    return f"{name} is not one of the tokenizers library"


def _check_files(folder: Path) -> None:
    """Raise InputError for what transformers would read and should not: no regular file, a link out, far too large."""
    for pattern in _READ:
        for path in folder.glob(pattern):
            if path.exists() and not path.is_dir():
                checked_path(path, MAX_JSON, folder)


def _file(folder: Path, reason: str) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        if next(folder.glob("*.model"), None) is not None and find_spec("sentencepiece") is None:
            reason = "pip install sentencepiece"
        raise InputError(f"{path}: this file is missing, and transformers cannot make it from the others ({reason})")
    return open_tokenizer(checked_path(path, MAX_JSON, folder))


def _same(left: str, right: str) -> bool:
    return _settled(json.loads(left)) == _settled(json.loads(right))


def _settled(data: dict[str, Any]) -> dict[str, Any]:
    """Without a post-processor that puts nothing around a text, which transformers adds where there is none."""
    processor = data.get("post_processor") or {}
    bare = processor.get("type") == "TemplateProcessing" and not processor.get("special_tokens")
    return {**data, "post_processor": None} if bare else data


def _name_tokens(folder: Path, tokens: dict[str, str]) -> None:
    path, legacy = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(path) if path.is_file() else {}
    found = read_special_tokens(folder)
    config |= dict.fromkeys(name for name in found if name not in tokens)
    for name, text in tokens.items():
        if found.get(name) == text:
            continue
        if name in STANDARD or name.endswith("_token"):
            config[name] = text
        else:
            extra = config.get("extra_special_tokens")
            config["extra_special_tokens"] = {**(extra if isinstance(extra, dict) else {}), name: text}
    write_json(path, config)
    if read_special_tokens(folder) != tokens:  # the older file says something else, and would win
        write_json(path, {**config, **{name: text for name, text in tokens.items() if name in STANDARD}})
        legacy.unlink(missing_ok=True)
