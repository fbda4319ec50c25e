"""A model's tokens as llguidance takes them: the bytes that each adds to a text, and a token of its own for the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from export.contract.errors import InputError
from runtime_py.text.token_bytes import TokenBytes
from runtime_py.text.tokenizing import boundary

_SPECIAL = b"\xff"  # what llguidance puts before the names of tokens that are no text
END = "<|end of the answer|>"


class Vocabulary:
    """What TokenizerWrapper of llguidance is: its attributes are read once, and it is called for no token."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: Mapping[int, str]) -> None:
        """tokens: bytes by id, b"" where there is none; special: names of tokens that texts skip."""
        self.eos_token_id = len(tokens)  # the end: no model's id, since which tokens end an answer is the request's
        self.tokens = [*tokens, _SPECIAL + END.encode()]
        for token, name in special.items():
            self.tokens[token] = _SPECIAL + name.encode()
        self.special_token_ids = [*special, self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        """Asked for by llguidance to force tokens, which forms.py switches off."""
        return []


def of_tokenizer(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model with so many logits. Raises InputError when a token cannot be decoded."""
    data = TokenBytes(tokenizer)
    special = special_tokens(tokenizer, size)
    return Vocabulary([b"" if token in special else data.of(token) for token in range(size)], special)


def of_bytes(size: int, special: Mapping[int, str]) -> Vocabulary:
    """A small vocabulary with the same special tokens: what a grammar is tried on."""
    free = (token for token in range(size + 256) if token not in special)
    tokens = [b""] * max(size, 256 + len(special))
    for byte in range(256):
        tokens[next(free)] = bytes([byte])
    return Vocabulary(tokens, special)


def special_tokens(tokenizer: Tokenizer, size: int) -> dict[int, str]:
    """Names of the tokens that texts skip, by id."""
    with boundary():
        added = tokenizer.get_added_tokens_decoder()
    return {token: one.content for token, one in added.items() if one.special and token < size}


def library() -> Any:
    """The package. Raises InputError, saying how to get it, where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise InputError(
            f"this needs the package llguidance ({error}): pip install 'athena-export[structured]'"
        ) from None
    return llguidance


def limits() -> Any:
    """Bounds on what one grammar may cost; each step of a mask stays within some 20 ms."""
    return library().LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
