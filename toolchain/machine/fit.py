"""How much memory a model takes to run at some bits, from its shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.graph.spec import ModelSpec
from toolchain.settings.quantize import QuantizeSettings

OVERHEAD_BITS = 0.1  # of a linear weight: codebooks and scales, which the default's widths allow for
RUNTIME = 240_000_000  # bytes of Python, packages and kernels: a run of 87 MB of weights and 25 tokens peaks at 319 MB
CONTEXT = 4096  # tokens that are reckoned with, or the model's own context where that is shorter
_CACHE = 2  # bytes of a cached number


@dataclass(frozen=True)
class Sizes:
    """Numbers that a model stores."""

    linear: int  # weights of the linear layers in blocks
    outside: int  # of embedding, head and other matrices
    cached: int  # keys and values of one token
    context: int

    @classmethod
    def of(cls, spec: ModelSpec, config: dict[str, object]) -> Sizes:
        """config: resolved. Raises InputError where transformers refuses it."""
        from toolchain.source.empty_model import empty_model  # torch, which `doctor` does without

        outside = sum(math.prod(shape) for shape in spec.outside().values())
        total = sum(parameter.numel() for parameter in empty_model(config).parameters())
        own = [n for n in range(spec.layers) if spec.names_of_layer(n).attends and spec.cache_layer(n) == n]
        cached = sum(2 * spec.heads_of(layer).keys for layer in own) if spec.causal else 0
        return cls(max(total - outside, 0), outside, cached, spec.context_length)

    @property
    def parameters(self) -> int:
        return self.linear + self.outside

    def stored(self, bits: float) -> int:
        """Bytes of the exported model: linear layers at `bits`, all else at the default's 8."""
        return int(self.linear * (bits + OVERHEAD_BITS) / 8 + self.outside * QuantizeSettings().embedding_bits / 8)

    def running(self, bits: float) -> int:
        """Bytes of memory while it answers within CONTEXT tokens."""
        return self.stored(bits) + self.cached * _CACHE * min(self.context, CONTEXT) + RUNTIME
