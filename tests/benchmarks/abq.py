"""Accuracy of ABQ-LLM's widths: uniform weights by abq, rtn and gptq, and Athena's codebooks, on the same activations.

    python -m tests.benchmarks.abq -o FOLDER [--models scribe-6M] [--page-only] [--rows W2A8 ...]

As tests/benchmarks/tender.py: rows in FOLDER/MODEL.json, everything in the interpreter, with integer activations of
a unit for each token, but those of qrazor in its own groups of 16; 12 windows of 256 tokens, 32 sequences of 256
tokens of calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.benchmarks.qrazor import REAL, TEXTS, Bench
from tests.benchmarks.tender import table
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import TOKEN, RazorSettings

# bits of weights and activations, and of whom
ROWS = {
    "W2A8": (2, 8, ("rtn", "gptq", "athena", "abq")),
    "W2*A8": (2, 8, ("abq",)),
    "W3A8": (3, 8, ("rtn", "gptq", "athena", "abq")),
    "W4A4": (4, 4, ("rtn", "gptq", "athena", "abq", "qrazor")),
}
WINDOWS = 12
CALIBRATION: dict[str, Any] = {"sequences": 32, "sequence_length": 256}
TRAINED: dict[str, Any] = {"block_steps": 20, "tune_batch": 4}


def measure(bench: Bench, rows: list[str]) -> None:
    for name in rows:
        bits, activations, methods = ROWS[name]
        whole = RazorSettings(activation_bits=activations, activation_basis=activations, activation_unit=TOKEN)
        for method in methods:
            razor = RazorSettings(activation_bits=activations) if method == "qrazor" else whole
            own = {**TRAINED, "bit_balance": "*" in name} if method == "abq" else {"passes": 1}
            settings = QuantizeSettings(method=method, bits=bits, razor=razor, **CALIBRATION, **own)
            folder = f"{name.replace('*', 'b')}-{method}"
            bench.row(
                f"{name}, {method}", lambda f=folder, s=settings: bench.quantized(f, s), razor.arithmetic()
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["scribe-6M"], choices=sorted({**TEXTS, **REAL}))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--page-only", action="store_true")
    arguments = parser.parse_args()
    arguments.o.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        bench = Bench(model, arguments.o, WINDOWS)
        if not arguments.page_only:
            measure(bench, arguments.rows)
        print("\n".join([f"### {model}", "", *table(bench.rows)]))


if __name__ == "__main__":
    main()
