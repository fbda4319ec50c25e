"""Tender's accuracy: activations in channel groups beside one unit for the tensor or for each token, at equal widths.

    python -m tests.benchmarks.tender -o FOLDER [--models scribe-6M] [--page-only]

As tests/benchmarks/qrazor.py: rows in FOLDER/MODEL.json, everything in the interpreter; 24 windows of 256 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.benchmarks.qrazor import TEXTS, Bench
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

ROWS = {  # weights and activations: groups of channels; 0: a unit for the tensor, -1: for each token
    (4, 4): (0, -1, 14),
    (8, 8): (0, -1, 8),
    (4, 8): (8,),
}
MORE = {(4, 4): (8, 16)}  # of the small model
WINDOWS, SEQUENCES = 24, 32


def measure(bench: Bench) -> None:
    for (bits, activations), chosen in ROWS.items():
        more = MORE.get((bits, activations), ()) if bench.model == "stories260K" else ()
        for groups in (*chosen, *more):
            name = f"W{bits}A{activations}"
            if groups > 0:
                razor = RazorSettings(activation_bits=activations, activation_groups=groups)
                row(bench, f"{name}, Tender, {groups} groups", "tender", bits, razor)
                continue
            unit = "token" if groups else "tensor"
            razor = RazorSettings(activation_bits=activations, activation_basis=activations, activation_unit=unit)
            row(bench, f"{name}, a unit for the {unit}", "rtn", bits, razor)
    for method in ("gptq", "athena"):
        razor = RazorSettings(activation_bits=4, activation_groups=14)
        row(bench, f"W4A4, 14 groups, weights by {method}", method, 4, razor)


def row(bench: Bench, name: str, method: str, bits: int, razor: RazorSettings) -> None:
    settings = QuantizeSettings(method=method, bits=bits, passes=1, sequences=SEQUENCES, razor=razor)
    where = "".join(c if c.isalnum() else "-" for c in name)
    bench.row(name, lambda: bench.quantized(where, settings), razor.arithmetic())


def table(rows: list[dict[str, Any]]) -> list[str]:
    reference = rows[0]["reference_perplexity"]
    lines = [
        f"float32: {reference:.3f}.",
        "",
        "| setting | effective bits of the weights | perplexity | KL |",
        "|---|---|---|---|",
    ]
    for found in rows:
        share = 100 * (found["perplexity"] / reference - 1)
        cell = f"{found['perplexity']:.3f} ({share:+.1f} %)"
        lines.append(f"| {found['name']} | {found['effective_bits']:.3f} | {cell} | {found['kl']:.4f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["scribe-6M"], choices=sorted(TEXTS))
    parser.add_argument("--page-only", action="store_true")
    arguments = parser.parse_args()
    arguments.o.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        bench = Bench(model, arguments.o, WINDOWS)
        if not arguments.page_only:
            measure(bench)
        print("\n".join([f"### {model}", "", *table(bench.rows)]))


if __name__ == "__main__":
    main()
