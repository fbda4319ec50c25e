"""Decode and prefill at 8,192 and 32,768 tokens: `python -m tests.benchmarks.long_context`.

Three small models of random weights, whose attention is the work: 2 layers of 16 heads of 128 over 4 key-value heads
that see everything, the same with a window of 1,024, and one with sinks and a window of 128 (gpt_oss). What is timed
and printed: tests/benchmarks/cache_bits.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.cache_bits import measure
from tests.runtime_py.tiny import write_tiny

_SIZES = {
    "hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 40960,
}  # fmt: skip
MODELS = {
    "full": {"model_type": "llama"},
    "window-1024": {"model_type": "mistral", "sliding_window": 1024},
    "sinks-128": {
        "model_type": "gpt_oss", "sliding_window": 128, "layer_types": ["sliding_attention"] * 2,
        "num_local_experts": 2, "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--depths", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="decoded in a round")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [write_tiny(Path(place) / name, {}, **{**_SIZES, **MODELS[name]}) for name in given.models]
        measure(folders, given.bits, given.depths, given.rounds, given.tokens, True, given.threads)


if __name__ == "__main__":
    main()
