"""Token ids to text while they arrive: split characters wait, stop strings are cut off.

The text of an answer is what the decoding of prompt and answer together has beyond the decoding of the prompt: without
the characters that both begin with. So a prompt that ends within a character leaves that character to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from runtime_py.text.decoder_stages import BROKEN, TokenDecoder, overlap

_TOKEN = 64  # characters, more than a token of bytes and a decoder's cut at the start of a text amount to


class TextStream:
    """Feed tokens with push(); it returns text that is final. Knows nothing about models.

    A stop string ends the answer at the first token with which the decoding so far holds it; U+FFFD that unfinished
    characters show do not count before flush(). Where a tokenizer's text is only known at the end (a decoder that
    decoder_stages.py cannot feed by token), stop strings are found there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        shown: frozenset[str] = frozenset(),
    ) -> None:
        """before: the prompt's ids. stop: stop strings. shown: special tokens that the text has, behind MARK."""
        self._decoder = TokenDecoder(tokenizer, shown)
        self._decoder.push(before)
        self._prompt = self._decoder.rest()  # what the prompt shows for tokens that may still change
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0) + _TOKEN
        self._held = ""  # text that may be the start of a stop string
        self._final = 0  # characters that are final, released or held
        self._place = 0  # of the last token
        self.stopped = False  # a stop string was met

    def push(self, token: int) -> str:
        """The text that became certain with this token; empty while a character or a stop string is unfinished."""
        return self._release(self._advance(token))

    def push_placed(self, token: int) -> tuple[str, int]:
        """push(), and the characters of the answer before this token; a character's tokens share its place."""
        final, shown = self._final, "" if self._decoder.waits else self._beyond_prompt()
        new = self._advance(token)
        if not new.startswith(shown):
            shown = shown.rstrip(BROKEN)  # this token goes on with a character
        self._place = max(self._place, final + len(shown))
        return self._release(new), self._place

    def flush(self) -> str:
        """What is left at the end of the answer: held text and the bytes of an unfinished character."""
        if self.stopped:
            return ""
        text, self._held = self._held + self._beyond_prompt(), ""
        cut = self._cut(text)
        return text if cut is None else cut

    def _advance(self, token: int) -> str:
        new = self._decoder.push([token])
        if new and self._prompt:
            shared = self._shared(new)
            self._prompt = self._prompt[shared:] if shared == len(new) else ""
            new = new[shared:]
        self._final += len(new)
        return new

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        seen = text + self._recent()
        if any(stop in seen for stop in self._stop):
            cut = self._cut(text + self._likely())
            if cut is not None:
                return cut
        keep = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _likely(self) -> str:
        """Complete characters that are not final: a broken byte may follow."""
        return "" if self._decoder.waits else self._beyond_prompt().rstrip(BROKEN)

    def _recent(self) -> str:
        """The end of _likely(), long enough to find a stop string that the last token completed."""
        if self._decoder.waits:
            return ""
        most = self._longest + len(self._prompt)
        rest = self._decoder.rest(most)
        return rest[self._shared(rest) if len(rest) < most else 0 :].rstrip(BROKEN)

    def _beyond_prompt(self) -> str:
        rest = self._decoder.rest()
        return rest[self._shared(rest) :]

    def _shared(self, text: str) -> int:
        """Characters that text and what the prompt showed begin with."""
        differs = (i for i, (x, y) in enumerate(zip(text, self._prompt)) if x != y)
        return next(differs, min(len(text), len(self._prompt)))

    def _cut(self, text: str) -> str | None:
        """The text before the first stop string, None when there is none."""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if not found:
            return None
        self.stopped, self._held = True, ""
        return text[: min(found)]
