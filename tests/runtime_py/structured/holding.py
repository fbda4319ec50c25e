"""Forms without a model: texts fed to them, and random answers drawn from what they allow."""

from __future__ import annotations

import numpy as np
from tokenizers import AddedToken, Tokenizer

from runtime_py.structured.compiler import Compiler
from runtime_py.structured.forms import Form
from runtime_py.structured.vocabulary import of_tokenizer, special_tokens
from runtime_py.text.decoder_stages import MARK
from tests.conftest import DEMO


class Holding:
    """The bundled model's tokenizer with more special tokens, and the forms over it."""

    def __init__(self, special: tuple[str, ...] = ()) -> None:
        self.tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        self.tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
        self.size = self.tokenizer.get_vocab_size()
        self.compiler = Compiler(self.tokenizer, self.size)
        self.special = special_tokens(self.tokenizer, self.size)
        self.bytes = of_tokenizer(self.tokenizer, self.size).tokens[: self.size]
        self._byte_tokens = {data: token for token, data in enumerate(self.bytes) if len(data) == 1}

    def accepts(self, form: Form, text: str) -> bool:
        """Whether the form allows the text, byte by byte, and then its end."""
        end = next(iter(self.special))
        constraint = self.compiler.compile(form).constraint(frozenset([end]))
        logits = np.zeros(self.size, np.float32)
        complete = False
        for byte in text.encode():
            token = self._byte_tokens[bytes([byte])]
            if complete or constraint.apply(logits)[token] < 0:
                return False
            complete = constraint.note(token)
        return complete or bool(constraint.apply(logits)[end] == 0)

    def draw(self, form: Form, seed: int, most: int = 400, endings: tuple[str, ...] = ()) -> str:
        """A random answer, special tokens behind MARK; it ends as soon as it may, half of the times.

        endings: texts that are written now and then where that is allowed, so that free text ends."""
        end = next(iter(self.special))
        constraint = self.compiler.compile(form).constraint(frozenset([end]))
        random, logits, data = np.random.default_rng(seed), np.zeros(self.size, np.float32), bytearray()
        pending = b""
        for _ in range(most):
            allowed = np.flatnonzero(constraint.apply(logits) == 0)
            if end in allowed and (allowed.size == 1 or random.random() < 0.5):
                break
            token = int(random.choice(allowed[allowed != end]))
            if endings and random.random() < 0.1:
                pending = pending or random.choice(endings).encode()
            marks = [one for one in allowed if one in self.special and one != end]
            if pending and self._byte_tokens[pending[:1]] in allowed:
                token, pending = self._byte_tokens[pending[:1]], pending[1:]
            elif marks and random.random() < 0.2:
                token = int(random.choice(marks))
            else:
                pending = b""
            data += (MARK + self.special[token]).encode() if token in self.special else self.bytes[token]
            if constraint.note(token):
                break
        else:
            raise AssertionError(f"no end: {data[:200]!r}")
        return data.decode()
