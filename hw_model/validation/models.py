"""The work of published models by their shape alone, for systems whose exported graph is not at hand.

The operations are those that a graph of our exporter has (tests/hw_model/test_validation.py compares them); stored
weights take the bits that the published file has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hw_model.graph_work.attention_nodes import causal_pairs
from hw_model.graph_work.operation import ACTIVATION_BYTES, CACHE_BYTES, Operation, Phase


@dataclass(frozen=True)
class Shape:
    """A transformer: a decoder with RMS norms and gated layers, or an encoder with layer norms, biases and GELU."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    experts: int = 0
    picked: int = 0
    convolutions: int = 0  # of the layers, those with a short convolution of three taps instead of attention (LFM2)
    norm_heads: bool = False  # norms of queries and keys
    tied: bool = True  # whether one matrix is the embedding and the vocabulary's product
    encoder: bool = False

    @property
    def parameters(self) -> int:
        """Weights of all matrices."""
        mixers = self.layers - self.convolutions
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        gated = (2 if self.encoder else 3) * self.hidden * self.intermediate * max(self.experts, 1)
        blocks = mixers * attention + self.convolutions * 4 * self.hidden**2 + self.layers * gated
        return blocks + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def work(self, phase: Phase, bits: float, head_bits: float = 0.0, last_only: bool = True) -> list[Operation]:
        """Operations of one forward pass.

        bits: stored bits a weight of the blocks; head_bits: of the vocabulary's matrix (0: the same). last_only:
        logits of the last token alone, as engines compute a prompt.
        """
        head = [] if self.encoder else [
            self._matrix(self.vocabulary, self.hidden, 1 if last_only else phase.tokens, head_bits or bits)
        ]  # fmt: skip
        row = round(self.hidden * (head_bits or bits) / 8)
        looked_up = phase.tokens * self.hidden
        table = Operation("embed", "embedding", vector_ops=looked_up, weight_bytes=row * phase.tokens,
                          activation_bytes=ACTIVATION_BYTES * looked_up, stored_bytes=0)  # fmt: skip
        norm = [] if self.encoder else [self._each(phase, "normalization", 4, self.hidden)]
        blocks = [op for layer in range(self.layers) for op in self._block(phase, bits, layer < self.convolutions)]
        named = enumerate([table, *blocks, *norm, *head])
        return [replace(op, name=f"{number}") for number, op in named]

    def _block(self, phase: Phase, bits: float, convolution: bool) -> list[Operation]:
        hidden, tokens = self.hidden, phase.tokens
        matrix, each = self._matrix, self._each
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if convolution:
            state = CACHE_BYTES * 3 * hidden
            mixer = [
                matrix(3 * hidden, hidden, tokens, bits), matrix(hidden, hidden, tokens, bits),
                Operation("", "convolution", vector_ops=6 * hidden * tokens, cache_read_bytes=state,
                          cache_write_bytes=state, activation_bytes=2 * ACTIVATION_BYTES * hidden * tokens),
                each(phase, "elementwise", 2, hidden),
            ]  # fmt: skip
        else:
            mixer = [
                *(matrix(rows, hidden, tokens, bits) for rows in (inner, kv, kv)), self._attention(phase),
                matrix(hidden, inner, tokens, bits),
            ]  # fmt: skip
            if self.norm_heads:
                mixer.append(each(phase, "normalization", 4, inner + kv))
            if not self.encoder:
                mixer.append(each(phase, "rotary", 3, inner + kv))
            else:
                mixer.append(each(phase, "elementwise", 1, inner + 2 * kv + hidden))  # biases
        around = [each(phase, "normalization", 6 if self.encoder else 4, 2 * hidden),
                  each(phase, "elementwise", 1, 2 * hidden)]  # fmt: skip
        return [*mixer, *self._feed_forward(phase, bits), *around]

    def _feed_forward(self, phase: Phase, bits: float) -> list[Operation]:
        hidden, wide, tokens = self.hidden, self.intermediate, phase.tokens
        if self.experts:
            picks = self.picked * tokens
            missed = (1 - self.picked / self.experts) ** tokens
            stored = [round(rows * columns * self.experts * bits / 8) for rows, columns in ((wide, hidden),) * 3]
            products = [
                Operation("", "experts", macs=picks * hidden * wide, weight_bytes=round(size * (1 - missed)),
                          rows=wide, columns=hidden, weight_bits=bits, stored_bytes=size,
                          activation_bytes=ACTIVATION_BYTES * picks * (hidden + wide))
                for size in stored
            ]  # fmt: skip
            activation = self._each(phase, "activation", 8, wide * self.picked)
            return [self._matrix(self.experts, hidden, tokens, 16), *products, activation]
        if self.encoder:
            return [
                self._matrix(wide, hidden, tokens, bits), self._matrix(hidden, wide, tokens, bits),
                self._each(phase, "activation", 10, wide), self._each(phase, "elementwise", 1, wide + hidden),
            ]  # fmt: skip
        return [
            *(self._matrix(wide, hidden, tokens, bits) for _ in range(2)), self._matrix(hidden, wide, tokens, bits),
            self._each(phase, "activation", 6, wide), self._each(phase, "elementwise", 2, wide),
        ]  # fmt: skip

    def _attention(self, phase: Phase) -> Operation:
        pairs = causal_pairs(phase, 0)
        if self.encoder:
            pairs = 2 * pairs - phase.tokens
        row = 0 if self.encoder else 2 * CACHE_BYTES * self.kv_heads * self.head_dim
        return Operation(
            "", "attention", macs=2 * pairs * self.heads * self.head_dim, vector_ops=6 * pairs * self.heads,
            cache_read_bytes=row * phase.total, cache_write_bytes=row * phase.tokens,
            activation_bytes=2 * ACTIVATION_BYTES * phase.tokens * (self.heads + self.kv_heads) * self.head_dim,
            heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, causal=not self.encoder,
        )  # fmt: skip

    def _matrix(self, rows: int, columns: int, vectors: int, bits: float) -> Operation:
        return Operation(
            "", "linear", macs=vectors * rows * columns, weight_bytes=round(rows * columns * bits / 8), rows=rows,
            columns=columns, weight_bits=bits, activation_bytes=ACTIVATION_BYTES * vectors * (rows + columns),
        )  # fmt: skip

    def _each(self, phase: Phase, kind: str, work: int, width: int) -> Operation:
        elements = phase.tokens * width
        return Operation("", kind, vector_ops=work * elements, activation_bytes=2 * ACTIVATION_BYTES * elements)


_QWEN_3: dict[str, Any] = {"heads": 32, "head_dim": 128, "vocabulary": 151936, "norm_heads": True}
SHAPES = {
    "Qwen2.5-0.5B": Shape(24, 896, 14, 2, 64, 4864, 151936),
    "Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936),
    "Qwen1.5-1.8B": Shape(24, 2048, 16, 16, 128, 5504, 151936, tied=False),
    "Qwen2.5-14B": Shape(48, 5120, 40, 8, 128, 13824, 152064, tied=False),
    "LFM2-350M": Shape(16, 1024, 16, 8, 64, 4608, 65536, convolutions=10),
    "LFM2-700M": Shape(16, 1536, 24, 8, 64, 6912, 65536, convolutions=10),
    "Qwen3-4B": Shape(36, 2560, kv_heads=8, intermediate=9728, **_QWEN_3),
    "Qwen3-30B-A3B": Shape(48, 2048, kv_heads=4, intermediate=768, experts=128, picked=8, tied=False, **_QWEN_3),
    "TinyLlama-1.1B": Shape(22, 2048, 32, 4, 64, 5632, 32000, tied=False),
    "Llama-2-7B": Shape(32, 4096, 32, 32, 128, 11008, 32000, tied=False),
    "Llama-2-13B": Shape(40, 5120, 40, 40, 128, 13824, 32000, tied=False),
    "Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256),
    "Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    "BERT-base": Shape(12, 768, 12, 12, 64, 3072, 30522, encoder=True),
}
