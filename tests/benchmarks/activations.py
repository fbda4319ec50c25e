"""What the engine's integer activations cost in quality: KL of a model folder to itself with float32 activations.

    python -m tests.benchmarks.activations OUT --text ../shared/text/wikitext2_test.raw.txt --window 192 --limit 3

The float32 side is the interpreter, so windows are few. The cache of the engine is float16, which is in the number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime_py.text.generator import load_tokenizer
from toolchain.evaluate.perplexity import EvalResult, FolderScorer, evaluate, windows_of


def measured(folder: Path, text: str, window: int, limit: int) -> EvalResult:
    """Perplexity with integer activations, and the KL divergence from float32 ones."""
    windows = windows_of(text, load_tokenizer(folder), window, limit, "--text")
    return evaluate(FolderScorer(folder), windows, FolderScorer(folder, "float32"), quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=192)
    parser.add_argument("--limit", type=int, default=3)
    options = parser.parse_args()
    for folder in options.folders:
        found = measured(folder, options.text.read_text(encoding="utf-8"), options.window, options.limit)
        print(f"{folder.name}: KL {found.kl:.4f} +- {found.kl_stderr:.4f}, perplexity {found.perplexity:.3f} "
              f"(float32 activations: {found.reference_perplexity:.3f}), {found.tokens} tokens")  # fmt: skip


if __name__ == "__main__":
    main()
