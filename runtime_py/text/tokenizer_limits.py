"""What a tokenizer can make of a text at most, and how long a prompt can be that fits a context.

growth() bounds the characters after normalization by what the file itself puts in: replacements and prefixes. Unicode's
own forms (NFKC: 18 times at most, and not again) are left out. longest_prompt() turns it round: where nothing of a text
can be lost, every token stands for a few bytes of it at most.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from export.contract.errors import InputError

_MOST_GROWTH = 1 << 16
_MOST_DECODED = 64  # growth of a decoder, per token
_LONGEST_TOKEN = 1 << 14  # characters; published ones have up to a few hundred
_LONGEST_WORD = 10_000  # max_input_chars_per_word; the time of WordPiece is its square
_MOST_STAGES = 256
_UNICODE_GROWTH = 18  # of U+FDFA under NFKC, which charsmaps contain as well
_PROMPT = 1 << 24  # characters of a prompt after normalization; the library holds about 20 bytes for each
# What looks around, holds on to what it has, or is an anchor: whether that matches between characters is open.
_UNSURE = re.compile(r"\(\?(?!:)|\\[bBAzZGKyYkg]|[\^$]|[*+?}]\+")
# How many bytes of a text can become one byte under a form: the decomposed syllable 9 to 3, U+1D400 4 to 1.
_SHRINKING = {"NFC": 3, "NFD": 3, "NFKC": 4, "NFKD": 4, "Lowercase": 3}
_KEEPING = frozenset({"ByteLevel", "Metaspace", "Digits", "Punctuation", "UnicodeScripts", "FixedLength"})


def check_tokenizer(tokenizer: Tokenizer, where: str | Path) -> None:
    """Raises InputError when it could turn a short text into one that fills the memory, or a token into a book."""
    parts = [*_parts(tokenizer.normalizer), *_parts(tokenizer.pre_tokenizer), *_parts(tokenizer.decoder)]
    if len(parts) > _MOST_STAGES:
        raise InputError(f"{where}: the tokenizer has {len(parts)} stages; at most {_MOST_STAGES} are run")
    for part in parts:
        if part.get("pattern") == {"String": ""} and part["type"] == "Replace":
            raise InputError(f"{where}: a Replace stage looks for the empty text")
    if growth(tokenizer) > _MOST_GROWTH:
        raise InputError(f"{where}: the tokenizer may make more than {_MOST_GROWTH} characters of one")
    if _product(_parts(tokenizer.decoder)) > _MOST_DECODED:
        raise InputError(f"{where}: the decoder may make more than {_MOST_DECODED} characters of one")
    if max(map(len, _words(tokenizer)), default=0) > _LONGEST_TOKEN:
        raise InputError(f"{where}: has a token of more than {_LONGEST_TOKEN} characters")
    if getattr(tokenizer.model, "max_input_chars_per_word", 0) > _LONGEST_WORD:
        raise InputError(f"{where}: max_input_chars_per_word is more than {_LONGEST_WORD}")


def growth(tokenizer: Tokenizer) -> int:
    """Characters that normalization may make of one, 1 or more."""
    return _product(_parts(tokenizer.normalizer))


def longest_prompt(tokenizer: Tokenizer, context: int | None) -> int:
    """Bytes (UTF-8) of the longest text that can fit `context` tokens, or that memory is spent on.

    Where the tokenizer may drop parts of a text (whitespace, unknown words), only the second.
    """
    memory = _PROMPT // growth(tokenizer)
    most = _bytes_per_token(tokenizer) if context is not None else None
    return memory if most is None or context is None else min(memory, most * context)


def _bytes_per_token(tokenizer: Tokenizer) -> int | None:
    """Bytes of a text that one token can stand for; None where there is no such number."""
    model = tokenizer.model
    kinds = [part["type"] for part in _parts(tokenizer.pre_tokenizer)]
    bytewise = "ByteLevel" in kinds
    added = tokenizer.get_added_tokens_decoder().values()
    if type(model).__name__ != "BPE" or any(token.lstrip or token.rstrip for token in added):
        return None
    alphabet = [f"<0x{i:02X}>" for i in range(256)] if not bytewise else _alphabet()
    if not (bytewise or model.byte_fallback) or any(tokenizer.token_to_id(part) is None for part in alphabet):
        return None  # unknown characters are dropped, or are one token together
    for part in _parts(tokenizer.pre_tokenizer):
        if part["type"] not in _KEEPING and not (part["type"] == "Split" and part["behavior"] != "Removed"):
            return None
        if part.get("behavior") == "Removed":
            return None
    shrinking = 1
    for part in _parts(tokenizer.normalizer):
        factor = _shrinking(part)
        if factor is None:
            return None
        shrinking *= factor
    names = {token.content for token in added}
    longest = max(len(word) if bytewise else len(word.encode()) for word in _words(tokenizer) if word not in names)
    return shrinking * max(longest, *(len(name.encode()) for name in names), 1)


def _shrinking(part: dict[str, Any]) -> int | None:
    """Bytes before a stage for each byte after it, at most; None where a stage can drop text."""
    kind = part["type"]
    if kind == "Replace":
        pattern, content = part["pattern"].get("String", ""), part["content"]
        return math.ceil(len(pattern.encode()) / len(content.encode())) if pattern and content else None
    return 1 if kind == "Prepend" else _SHRINKING.get(kind)


def _product(parts: list[dict[str, Any]]) -> int:
    return math.prod(map(_grows, parts))


def _grows(part: dict[str, Any]) -> int:
    """Characters after a stage for each one before it, at most."""
    kind = part["type"]
    if kind == "Prepend":  # before every piece of a text, and special tokens cut it into many
        return 1 + len(part["prepend"])
    if kind == "Precompiled":
        return math.ceil(_longest_mapped(part["precompiled_charsmap"]) / _UNICODE_GROWTH)
    if kind != "Replace":
        return 1
    content, pattern = len(part["content"]), part["pattern"]
    if "String" in pattern:
        return max(1, math.ceil(content / max(len(pattern["String"]), 1)))
    return 1 + content if _matches_nothing(pattern["Regex"]) else max(1, content)


@lru_cache(maxsize=256)
def _matches_nothing(expression: str) -> bool:
    """Whether the expression may match between two characters, so that what replaces it only comes on top."""
    if _UNSURE.search(expression):
        return True
    before = normalizers.Replace(Regex(f"(?:{expression})(?=\ue000)"), "x").normalize_str("\ue000")
    return before != "\ue000"


@lru_cache(maxsize=8)
def _longest_mapped(charsmap: str) -> int:
    """Characters of the longest text in a sentencepiece charsmap: a trie with its size before it, then the texts."""
    data = base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    return max(1, *(len(text.decode(errors="replace")) for text in texts))


def _parts(component: Any) -> list[dict[str, Any]]:
    """The settings of a normalizer, pre-tokenizer or decoder, sequences taken apart."""
    return [] if component is None else list(_flat(json.loads(component.__getstate__())))


def _flat(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if settings["type"] != "Sequence":
        yield settings
        return
    inner = next(value for value in settings.values() if isinstance(value, list))
    for part in inner:
        yield from _flat(part)


def _words(tokenizer: Tokenizer) -> Iterator[str]:
    yield from tokenizer.get_vocab(with_added_tokens=True)


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())
