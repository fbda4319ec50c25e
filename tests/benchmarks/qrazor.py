"""QRazor's accuracy: integer weights, activations and caches on the real models of ../shared, by groups and widths.

    python -m tests.benchmarks.qrazor -o FOLDER [--models scribe-6M] [--page-only]

Writes FOLDER/MODEL.json row by row (a stopped run goes on where it was) and prints the tables of docs/qrazor.md, in
markdown. Calibration is the first half of each text, evaluation the second, in windows of 256 tokens; all rows run in
the interpreter, whose integers are onnxruntime's to the bit and whose embedding and head multiply in float32. A
quantized checkpoint serves several rows: widths of activations and cache change neither weights nor units, so only the
format in its manifest is exchanged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.graph.integers import IntegerArithmetic
from tests.benchmarks.real_model import source_folder
from toolchain.calibrate import text as calibration
from toolchain.evaluate.perplexity import FolderScorer, evaluate, open_scorer, windows_of
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

SHARED = Path("../shared")
TEXTS = {"stories260K": "tinystories_val.txt", "scribe-6M": "scribe_valid.txt"}
REAL = {"SmolLM2-135M": "wikitext2_valid.tokens.txt"}  # tests/benchmarks/real_model.py
WINDOWS = 100
GROUPS = (8, 16, 32, 64, 128)
BASES = ("W8A16KV8", "W8A16KV8, cache per head")
WIDTHS = {"W4A16": (16, 0), "W4A8": (8, 0), "W4A4": (4, 0), "W4KV4": (16, 4), "W4A4KV4": (4, 4)}


class Bench:
    """One model: its windows, its float32 logits by way of the reference scorer, and the rows found so far."""

    def __init__(self, model: str, out: Path, windows: int = WINDOWS) -> None:
        self.model, self.out = model, out
        self.source = source_folder() if model in REAL else SHARED / "models" / model
        self.text = SHARED / "text" / {**TEXTS, **REAL}[model]
        tokenizer = calibration.load_tokenizer(self.source)
        text = calibration.slice_text(calibration.read_text(self.text), "0.5:1")
        self.windows = windows_of(text, tokenizer, 256, windows, str(self.text))
        self.reference = open_scorer(str(self.source))
        self.path = out / f"{model}.json"
        self.rows: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []

    def quantized(self, name: str, settings: QuantizeSettings) -> QuantizedCheckpoint:
        choice = CalibrationChoice(str(self.text), "0:0.5")
        return quantize_model(str(self.source), self.out / f"{self.model}-{name}", settings, choice, quiet=True)

    def row(self, name: str, checkpoint: Any, arithmetic: IntegerArithmetic, **more: Any) -> None:
        """Measure one row unless it is known; `checkpoint` is called when it is needed."""
        if any(found["name"] == name for found in self.rows):
            return
        stored, start = checkpoint(), time.monotonic()
        stored.manifest = {**stored.manifest, "integers": arithmetic.to_json()}
        folder = package_checkpoint(stored, self.out / "folder", quiet=True)
        result = evaluate(FolderScorer(folder, "float32"), self.windows, self.reference, quiet=True)
        shutil.rmtree(folder)
        bits = stored.manifest["totals"]["effective_bits"]
        self.rows.append({"name": name, "effective_bits": bits, **more, **result.to_json()})
        self.path.write_text(json.dumps(self.rows))
        print(
            f"{self.model} {name}: perplexity {result.perplexity:.3f} (float32 {result.reference_perplexity:.3f}), "
            f"KL {result.kl:.4f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )


def measure(bench: Bench) -> None:
    base = RazorSettings(activation_bits=16, kv=8, compensate=False)
    bench.row(
        BASES[0],
        lambda: bench.quantized("base", QuantizeSettings(method="qrazor", bits=8, razor=base)),
        base.arithmetic(),
    )
    by_head = RazorSettings(activation_bits=16, kv=8, compensate=False, kv_unit="head")
    bench.row(
        BASES[1],
        lambda: bench.quantized("base-head", QuantizeSettings(method="qrazor", bits=8, razor=by_head)),
        by_head.arithmetic(),
    )
    for compensate in (False, True):
        for group in GROUPS:
            settings = RazorSettings(activation_bits=4, kv=4, razor_group=group, compensate=compensate)
            name = f"g{group}-{'compensated' if compensate else 'plain'}"
            for label, (activations, kv) in WIDTHS.items():
                razor = RazorSettings(activation_bits=activations, kv=kv, razor_group=group)
                bench.row(
                    f"{label} {name}",
                    lambda s=settings, n=name: bench.quantized(n, QuantizeSettings(method="qrazor", bits=4, razor=s)),
                    razor.arithmetic(),
                    group=group, compensate=compensate, label=label,
                )  # fmt: skip
    rounding = RazorSettings(activation_bits=4, activation_basis=4, activation_unit="token")
    bench.row(
        "round to nearest W4A4, per token",
        lambda: bench.quantized("rtn", QuantizeSettings(method="rtn", bits=4, razor=rounding)),
        rounding.arithmetic(),
    )
    for name, more in (
        ("refit", {"refit": True}),
        ("activations per token", {"activation_unit": "token"}),
        ("cache per head", {"kv_unit": "head"}),
        ("twos-complement", {"razor_variant": "twos-complement"}),
        ("half-even", {"razor_ties": "half-even"}),
    ):
        razor = RazorSettings(activation_bits=4, kv=4, **more)  # type: ignore[arg-type]
        bench.row(
            f"W4A4KV4 g16, {name}",
            lambda r=razor, n=name: bench.quantized(n, QuantizeSettings(method="qrazor", bits=4, razor=r)),
            razor.arithmetic(),
        )
    razor = RazorSettings(activation_bits=4, kv=4)
    rotated = QuantizeSettings(method="qrazor", bits=4, rotation="activations", razor=razor)
    bench.row("W4A4KV4 g16, rotated", lambda: bench.quantized("rotated", rotated), rotated.arithmetic())
    for bits in (4, 3):
        for activations in (16, 8, 4):
            razor = RazorSettings(activation_bits=activations)
            bench.row(
                f"Athena codebooks W{bits}, A{activations} g16",
                lambda b=bits: bench.quantized(
                    f"athena-{b}", QuantizeSettings(bits=b, razor=RazorSettings(activation_bits=4))
                ),
                razor.arithmetic(),
            )
        razor = RazorSettings(activation_bits=4, razor_codebook=4)
        bench.row(
            f"Athena codebooks W{bits}, entries razored to 4 bits, A4 g16",
            lambda b=bits, r=razor: bench.quantized(f"athena-razored-{b}", QuantizeSettings(bits=b, razor=r)),
            razor.arithmetic(),
        )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of one model as markdown: a grid by group, then the rest."""
    by_name = {row["name"]: row for row in rows}
    reference = rows[0]["reference_perplexity"]
    bases = [f"{name}: {_cell(by_name[name])}" for name in BASES]
    lines = [f"float32: {reference:.3f}. {'. '.join(bases)}.", ""]
    lines += ["| setting | " + " | ".join(f"g{g}" for g in GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for compensate in ("plain", "compensated"):
        for label in WIDTHS:
            cells = [_cell(by_name[f"{label} g{g}-{compensate}"]) for g in GROUPS]
            lines.append(f"| {label}, {compensate} | " + " | ".join(cells) + " |")
    lines += ["", "| other | effective bits of the weights | perplexity | KL |", "|---|---|---|---|"]
    for row in rows:
        if "group" not in row and row["name"] not in BASES:
            lines.append(f"| {row['name']} | {row['effective_bits']:.3f} | {row['perplexity']:.3f} | {row['kl']:.4f} |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    return f"{row['perplexity']:.3f} ({100 * (row['perplexity'] / row['reference_perplexity'] - 1):+.1f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("qrazor-out"))
    parser.add_argument("--models", nargs="*", default=list(TEXTS))
    parser.add_argument("--page-only", action="store_true", help="print the tables of the rows in FOLDER")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        bench = Bench(model, args.output)
        if not args.page_only:
            measure(bench)
        print("\n".join([f"## {model}", "", *table(bench.rows), ""]))


if __name__ == "__main__":
    main()
