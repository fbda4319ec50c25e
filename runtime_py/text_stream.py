"""Token ids to text while they arrive: split characters wait, stop strings are cut off."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"  # what a decoder shows for the first bytes of a character
_CONTEXT = 6  # tokens before the new ones that are decoded with them, because decoders treat a first token differently


class TextStream:
    """Feed tokens with push(); it returns text that is final. Knows nothing about models."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        """before: the prompt's ids, whose end decides about the first token's leading space. stop: stop strings."""
        self._tokenizer = tokenizer
        self._ids = list(before[-_CONTEXT:])
        self._first = 0  # where the decoded window starts
        self._shown = len(tokenizer.decode(self._ids))
        self._stop = tuple(text for text in stop if text)
        self._held = ""  # text that may be the start of a stop string
        self.stopped = False  # a stop string was met

    def push(self, token: int) -> str:
        """The text that became certain with this token; empty while a character or a stop string is unfinished."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._first :])
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._first < 4 * _CONTEXT:
            return ""
        new = text[self._shown :]
        self._first = max(len(self._ids) - _CONTEXT, 0)
        self._shown = len(self._tokenizer.decode(self._ids[self._first :]))
        return self._release(new)

    def flush(self) -> str:
        """What is left at the end of the answer: held text and the bytes of an unfinished character."""
        if self.stopped:
            return ""
        rest = self._release(self._tokenizer.decode(self._ids[self._first :])[self._shown :])
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of text that a stop string begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
