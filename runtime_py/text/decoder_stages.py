"""The decoder of a tokenizer.json, fed token by token: whatever is final leaves at once, at bounded cost per token.

tokenizers' own DecodeStream (0.23.3) is not used: of <0xD2> <0xBE> <0x8D> it shows "Ҿ" with the second token, though
decode() makes three U+FFFD of the three. It errs like that over all byte tokens and over a regular expression on fused
text (its step() then often raises), it never shows text that ends in U+FFFD, and for each token it decodes everything
since its last output again: 4,000 broken bytes take 3 s, 2,000 a quarter of that.

A stage here is one decoder of the chain and gives exactly what that decoder makes of the whole list; its parts are
tokens, or fragments of one token once the chain has fused them. What works token by token is done by the library's
decoder itself.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import Decoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # as ByteFallback reads them: with a sign, too
BROKEN = "\ufffd"  # what decoders show for bytes that are no character
MARK = "\ufdd0"  # before a special token that is shown: no character, so that no text can pass for such a token


class Stage(ABC):
    """One decoder of the chain. Attributes are never changed in place, so that a copy is a snapshot."""

    @abstractmethod
    def push(self, parts: list[str]) -> list[str]:
        """What is final after these parts."""

    def end(self, most: int | None = None) -> list[str]:
        """What else comes when no part follows. most: the last so many characters are enough."""
        return []

    def finish(self, parts: list[str], most: int | None = None) -> list[str]:
        """push(parts) and end() without changing anything."""
        twin = copy.copy(self)
        return twin.push(parts) + twin.end(most)

    @abstractmethod
    def middle(self, part: str) -> str | bytes:
        """What one token contributes when others stand before and after it; bytes need no further stage."""


class _Each(Stage):
    """A decoder that treats every token alike."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def push(self, parts: list[str]) -> list[str]:
        return [self.middle(part) for part in parts]

    def middle(self, part: str) -> str:
        return str(self._decoder.decode([part]))


class _AfterFirst(Stage):
    """A decoder that treats the first token differently: WordPiece, Metaspace, or none at all (joined by spaces)."""

    def __init__(self, decoder: Decoder | None) -> None:
        self._decoder, self._first = decoder, True

    def push(self, parts: list[str]) -> list[str]:
        found = []
        for part in parts:
            if not self._first:
                found.append(self.middle(part))
            else:
                self._first = False
                found.append(part if self._decoder is None else str(self._decoder.decode([part])))
        return found

    def middle(self, part: str) -> str:
        return f" {part}" if self._decoder is None else str(self._decoder.decode(["", part]))


class _Suffix(Stage):
    """BPEDecoder: the suffix of a word's end is a space, except in the last token, so one token waits."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._last: tuple[str, ...] = ()

    def push(self, parts: list[str]) -> list[str]:
        waiting = (*self._last, *parts)
        self._last = waiting[-1:]
        return [self.middle(part) for part in waiting[:-1]]

    def end(self, most: int | None = None) -> list[str]:
        return [part.replace(self._suffix, "") for part in self._last]

    def middle(self, part: str) -> str:
        return part.replace(self._suffix, " ")


class _ByteFallback(Stage):
    """A run of byte tokens waits for its end: it is text if all of it is UTF-8, else one U+FFFD for each byte."""

    def __init__(self) -> None:
        self._text = ""  # the run's complete characters
        self._rest = b""  # its last bytes, the start of a character
        self._size = 0  # bytes in the run
        self._invalid = False  # no later byte can mend it, so its U+FFFD are out already

    def push(self, parts: list[str]) -> list[str]:
        found = []
        for part in parts:
            match = _BYTE_TOKEN.fullmatch(part)
            if match:
                found += self._add(bytes([int(match[1], 16)]))
            else:
                found += self.end()
                self._text, self._rest, self._size, self._invalid = "", b"", 0, False
                found.append(part)
        return found

    def end(self, most: int | None = None) -> list[str]:
        if self._invalid or not self._size:
            return []
        if self._rest:
            return [BROKEN] * (self._size if most is None else min(self._size, most))
        return [self._text if most is None else self._text[-most:]]

    def middle(self, part: str) -> str | bytes:
        match = _BYTE_TOKEN.fullmatch(part)
        return bytes([int(match[1], 16)]) if match else part

    def _add(self, byte: bytes) -> list[str]:
        if self._invalid:
            return [BROKEN]
        self._size += 1
        try:
            text, used = codecs.utf_8_decode(self._rest + byte, "strict", False)
        except UnicodeDecodeError:
            self._invalid = True
            return [BROKEN] * self._size
        self._text += text
        self._rest = (self._rest + byte)[used:]
        return []


class _ByteLevel(Stage):
    """Tokens spelled in GPT-2's alphabet of bytes; a token with any other character stands for itself."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, parts: list[str]) -> list[str]:
        data = self._rest + b"".join(self.middle(part) for part in parts)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        return [text]

    def end(self, most: int | None = None) -> list[str]:
        return [self._rest.decode("utf-8", "replace")]

    def middle(self, part: str) -> bytes:
        try:
            return bytes(_ALPHABET[character] for character in part)
        except KeyError:
            return part.encode()


class _FusedStrip(Stage):
    """Strip on the fused text: its two ends only."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._held = ""  # may be the end

    def push(self, parts: list[str]) -> list[str]:
        text = "".join(parts)
        kept = text.lstrip(self._content) if self._start else text
        cut = min(len(text) - len(kept), self._start)
        self._start = 0 if kept else self._start - cut
        text = self._held + text[cut:]
        size = min(len(text) - len(text.rstrip(self._content)), self._stop)
        self._held = text[len(text) - size :]
        return [text[: len(text) - size]]

    def middle(self, part: str) -> str:
        return part


class _FusedReplace(Stage):
    """Replacement of a text that may stand across the fragments."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content
        self._held = ""  # the pattern's first characters

    def push(self, parts: list[str]) -> list[str]:
        *done, rest = (self._held + "".join(parts)).split(self._pattern)
        keep = overlap(rest, self._pattern)
        self._held = rest[len(rest) - keep :]
        return [self._content.join([*done, rest[: len(rest) - keep]])]

    def end(self, most: int | None = None) -> list[str]:
        return [self._held]

    def middle(self, part: str) -> str:
        return part.replace(self._pattern, self._content)


class _Waiting(Stage):
    """Decoders whose last token may change the first (CTC, a regular expression over the whole text): all waits."""

    def __init__(self, decoder: Decoder, fused: bool) -> None:
        self._decoder, self._fused = decoder, fused
        self._parts: list[str] = []

    def push(self, parts: list[str]) -> list[str]:
        self._parts.extend(parts)
        return []

    def finish(self, parts: list[str], most: int | None = None) -> list[str]:
        whole = self._parts + parts
        return [str(self._decoder.decode(["".join(whole)] if self._fused else whole))] if whole else []

    def middle(self, part: str) -> str:
        return str(self._decoder.decode([part]))


class TokenDecoder:
    """A tokenizer's decode() in small steps, special tokens skipped."""

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[str] = frozenset()) -> None:
        """shown: special tokens that are not skipped, but put into the text behind MARK."""
        self._tokenizer, self._shown = tokenizer, shown
        self._special = special_tokens(tokenizer)
        self._stages = stages(tokenizer.decoder)
        self.waits = any(isinstance(stage, _Waiting) for stage in self._stages)  # all text comes at the end

    def push(self, ids: Sequence[int]) -> str:
        """Text that is final after these tokens."""
        tokens = (self._tokenizer.id_to_token(token) for token in ids)
        parts = [
            MARK + token if token in self._special else token
            for token in tokens
            if token is not None and (token not in self._special or token in self._shown)
        ]
        for stage in self._stages:
            parts = stage.push(parts) if parts else parts
        return "".join(parts)

    def rest(self, most: int | None = None) -> str:
        """The text beyond what push() gave, should no token follow; more may be pushed afterwards.

        most: the last so many characters are enough, whatever the first ones would lose to a decoder.
        """
        parts: list[str] = []
        for stage in self._stages:
            parts = stage.finish(parts, most)
        return "".join(parts)


def special_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """Tokens that decode() skips; it goes by their text."""
    return frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def stages(decoder: Decoder | None) -> list[Stage]:
    """New stages that do what the decoder does; None: a tokenizer without one."""
    if decoder is None:
        return [_AfterFirst(None)]
    settings, found, fused = _flat(json.loads(decoder.__getstate__())), list[Stage](), False
    for i, part in enumerate(settings):
        kind = part["type"]
        stage = _fused_stage(part) if fused else _token_stage(part)
        fused = fused or kind in ("Fuse", "ByteLevel")
        if stage is not None:
            found.append(stage)
        elif kind != "Fuse":
            found.append(_Waiting(_library({"type": "Sequence", "decoders": settings[i:]}), fused))
            break
    return found


def overlap(text: str, start: str) -> int:
    """Characters at the end of text that `start` begins with, fewer than all of `start`."""
    for size in range(min(len(text), len(start) - 1), 0, -1):
        if text.endswith(start[:size]):
            return size
    return 0


def _token_stage(part: dict[str, Any]) -> Stage | None:
    match part["type"]:
        case "Replace" | "Strip":
            return _Each(_library(part))
        case "WordPiece" | "Metaspace":
            return _AfterFirst(_library(part))
        case "BPEDecoder":
            return _Suffix(part["suffix"])
        case "ByteFallback":
            return _ByteFallback()
        case "ByteLevel":
            return _ByteLevel()
    return None


def _fused_stage(part: dict[str, Any]) -> Stage | None:
    """For the fused text, which is a first and a last token at once."""
    match part:
        case {"type": "Strip"}:
            return _FusedStrip(part["content"], part["start"], part["stop"])
        case {"type": "Replace", "pattern": {"String": str(pattern)}} if pattern:
            return _FusedReplace(pattern, part["content"])
        case {"type": "Metaspace"}:
            return _FusedReplace(part["replacement"], " " if part["prepend_scheme"] == "never" else "")
        case {"type": "BPEDecoder", "suffix": str(suffix)} if suffix:
            return _FusedReplace(suffix, "")
    return None


def _flat(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoders of nested sequences in their order."""
    if settings["type"] != "Sequence":
        return [settings]
    return [part for inner in settings["decoders"] for part in _flat(inner)]


def _library(settings: dict[str, Any]) -> Decoder:
    """The library's decoder with these settings."""
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return Tokenizer.from_str(json.dumps({"model": empty, "decoder": settings})).decoder


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it is visible, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_ALPHABET = _alphabet()
