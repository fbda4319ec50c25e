"""The bytes that one token adds to a text, for log probabilities."""

from __future__ import annotations

from tokenizers import Tokenizer

from runtime_py.text.decoder_stages import special_tokens, stages
from runtime_py.text.tokenizing import boundary


class TokenBytes:
    """A tokenizer's tokens as bytes: of an answer's tokens, joined, they are the answer's text in UTF-8.

    A token counts as one in the middle of a text, so its leading space belongs to it; a decoder may drop that space at
    the very start of a text. A special token, which texts skip, stands for its own name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._stages = stages(tokenizer.decoder)

    def of(self, token: int) -> bytes:
        """A token's bytes, which need not be UTF-8; none for an id without a token.

        Raises InputError when the decoder fails."""
        with boundary():
            return self._of(token)

    def _of(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        if text is None or text in self._special:
            return (text or "").encode()
        for stage in self._stages:
            part = stage.middle(text)
            if isinstance(part, bytes):
                return part
            text = part
        return text.encode()
