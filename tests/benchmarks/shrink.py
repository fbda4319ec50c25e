"""Smaller models by every method, before and after healing and at 4 bits: `python -m tests.benchmarks.shrink`.

    python -m tests.benchmarks.shrink -o FOLDER [--source MODEL --calibration FILE --text FILE ...]

For each share that is kept, every method makes a model, with the options of `athena-export shrink` that are spelled
alike. `search` gets no share but the latency on the target that magnitude's model has there, so both rows are one
budget. Then each is healed, and the healed model is quantized as by `export --preset fast`.
Perplexity and KL are of windows of the text, float32 activations: at 4 bits the weights are what the codes stand for.
Finished rows stay in FOLDER/rows.json, so a stopped run goes on. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.stored_matrix import StoredMatrix
from toolchain.calibrate.text import load_tokenizer, read_text, slice_text
from toolchain.evaluate.perplexity import HuggingFaceScorer, evaluate, windows_of
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.shrinking.shrink import (
    METHODS,
    SEARCH,
    AdapterSettings,
    BudgetSettings,
    HealSettings,
    SearchSettings,
    ShrinkSettings,
)
from toolchain.shrink.folder import write_folder
from toolchain.shrink.heal import healed_tensors
from toolchain.shrink.report import Judge
from toolchain.shrink.run import ShrinkRun
from toolchain.source.heads import open_model
from toolchain.system.threads import fixed_rounding

COLUMNS = ("by", "kept", "layers, heads, channels", "parameters", "token, modelled", "perplexity", "KL",
           "healed: perplexity", "KL", "healed, 4 bits: perplexity", "KL")  # fmt: skip


class Kept:
    """A scorer that computes the logits of each window once."""

    def __init__(self, inner: HuggingFaceScorer) -> None:
        self._inner, self.vocab_size = inner, inner.vocab_size
        self._known: dict[bytes, np.ndarray] = {}

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        key = tokens.tobytes()
        if key not in self._known:
            self._known[key] = self._inner.logits(tokens)
        return self._known[key]


class Dequantized(HuggingFaceScorer):
    """A model with the weights that the codes of a quantized checkpoint stand for."""

    def __init__(self, source: Path, checkpoint: QuantizedCheckpoint) -> None:
        super().__init__(str(source))
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for record in checkpoint.records.values():
                parameter = parameters.get(f"{record.name}.weight")
                if record.is_dense or parameter is None:
                    continue
                matrix = StoredMatrix.restored(record, partial(checkpoint.tensor, record.name))
                parameter.copy_(torch.from_numpy(matrix.dequantized()))


class Bench:
    """One source model and one text."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.out = asked, Path(asked.output)
        self.out.mkdir(parents=True, exist_ok=True)
        text = slice_text(read_text(Path(asked.text)), asked.part)
        tokenizer = load_tokenizer(Path(asked.source))
        self.windows = windows_of(text, tokenizer, asked.window, asked.windows, asked.text)
        self.reference = Kept(HuggingFaceScorer(asked.source))
        self.rows_file = self.out / "rows.json"
        self.rows: dict[str, Any] = json.loads(self.rows_file.read_text()) if self.rows_file.exists() else {}

    def score(self, scorer: HuggingFaceScorer) -> tuple[float, float]:
        """Perplexity and KL."""
        found = evaluate(scorer, self.windows, self.reference, quiet=True)
        assert found.kl is not None
        return found.perplexity, found.kl

    def settings(self, method: str, keep: float, latency: float | None) -> ShrinkSettings:
        a = self.asked
        limit = None if latency is None else f"{latency * 1e6:.4f}us"
        budget = BudgetSettings(keep if latency is None else None, a.target, latency=limit, priced_context=a.context)
        return ShrinkSettings(
            method, a.multiple, sequences=a.sequences, sequence_length=a.length, budget=budget,
            search=SearchSettings(a.generations, a.population, a.children, a.scored),
            adapters=AdapterSettings(a.prune_steps), healing=HealSettings(reconstruct=a.reconstruct),
        )  # fmt: skip

    def row(self, method: str, keep: float) -> dict[str, Any]:
        """One method at one size, what of it is not known yet."""
        key = f"{method} {keep:g}"
        row: dict[str, Any] = self.rows.setdefault(key, {"method": method, "keep": keep})
        latency = None
        if method == SEARCH:
            latency = self.row("magnitude", keep)["latency_s"] * (1 + 1e-6)
        settings = self.settings(method, keep, latency)
        folder = self.out / key.replace(" ", "-")
        if "cut" not in row:
            begun = time.monotonic()
            report = self._shrink(settings, folder)
            row |= {
                "sizes": report["sizes"]["after"],
                "parameters": report["parameters"]["after"],
                "linear": report["linear_weights"]["after"] / report["linear_weights"]["before"],
                "latency_s": report["cost"]["after"]["latency_s"],
                "ranks": report.get("ranks"),
                "layers": (report["cut"] or {}).get("layers"),
                "cut": self.score(HuggingFaceScorer(str(folder))),
                "seconds": time.monotonic() - begun,
            }
            self._keep(row)
        if self.asked.heal_steps and "healed" not in row:
            healed = self.out / f"{folder.name}-healed"
            self._heal(folder, healed)
            row["healed"] = self.score(HuggingFaceScorer(str(healed)))
            self._keep(row)
        last = self.out / f"{folder.name}-healed" if self.asked.heal_steps else folder
        if self.asked.bits and "quantized" not in row:
            row["quantized"] = self._quantized(last)
            self._keep(row)
        return row

    def _shrink(self, settings: ShrinkSettings, folder: Path) -> dict[str, Any]:
        a = self.asked
        run = ShrinkRun(a.source, settings, self._choice(), quiet=True)
        return run.finish(folder.with_name(f"{folder.name}.partial"), folder, Judge(limit=1), restart=True, force=True)

    def _heal(self, folder: Path, healed: Path) -> None:
        """As a run with --heal-steps does behind its cut."""
        a = self.asked
        healing = HealSettings(heal_steps=a.heal_steps, heal_batch=a.heal_batch, heal_rate=a.heal_rate)
        run = ShrinkRun(a.source, self.settings("magnitude", 0.5, None), self._choice(), quiet=True)
        with fixed_rounding():
            windows = run.windows(None, healing.heal_length)
            tensors = healed_tensors(run.source, folder, windows, healing, 0, self.out, True, run.precision)
            write_folder(healed, run.source, open_model(folder)[0].config, tensors, run.dtype)

    def _choice(self) -> CalibrationChoice:
        return CalibrationChoice(self.asked.calibration, self.asked.calibration_part)

    def _quantized(self, folder: Path) -> tuple[float, float]:
        a, place = self.asked, self.out / "quantized"
        shutil.rmtree(place, ignore_errors=True)
        settings = QuantizeSettings(bits=a.bits, passes=1, sequences=a.sequences, sequence_length=a.length)
        checkpoint = quantize_model(str(folder), place, settings, self._choice(), quiet=True)
        return self.score(Dequantized(folder, checkpoint))

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows_file.write_text(json.dumps(self.rows, indent=1))
        print(json.dumps(row), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        s = row["sizes"]
        sizes = f"{s['layers']}, {s['heads']}/{s['kv_heads']}, {s['feed_forward']}"
        if row["ranks"]:
            means = [round(float(np.mean(ranks))) for ranks in row["ranks"].values()]
            sizes = f"ranks of {means[0]} and {means[1]} on average"
        cells = [row["method"], f"{100 * row['linear']:.1f} %", sizes, f"{row['parameters'] / 1e6:.2f} M",
                 f"{row['latency_s'] * 1e6:.0f} us"]  # fmt: skip
        for stage in ("cut", "healed", "quantized"):
            found = row.get(stage)
            cells += [f"{found[0]:.2f}", f"{found[1]:.3f}"] if found else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    shared = "../../shared" if Path("../../shared").is_dir() else "../shared"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--source", default=f"{shared}/models/scribe-6M")
    parser.add_argument("--calibration", default=f"{shared}/text/scribe_valid.txt")
    parser.add_argument("--calibration-part", default="0:0.5")
    parser.add_argument("--text", default=f"{shared}/text/scribe_valid.txt")
    parser.add_argument("--part", default="0.5:1")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.6])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--target", default="rpi5")
    numbers = {"window": 256, "windows": 32, "context": 512, "multiple": 32, "sequences": 32, "length": 256,
               "generations": 8, "population": 10, "children": 16, "scored": 8, "prune-steps": 100, "heal-steps": 60,
               "heal-batch": 4, "bits": 4}  # fmt: skip
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--reconstruct", action=argparse.BooleanOptionalAction, help="by every method or by none")
    parser.add_argument("--heal-rate", type=float)
    bench = Bench(parser.parse_args())
    reference = evaluate(bench.reference, bench.windows, quiet=True).perplexity
    rows = [bench.row(method, keep) for keep in bench.asked.keep for method in bench.asked.methods]
    print(f"\nsource: perplexity {reference:.2f}, {bench.windows.size} tokens\n\n{table(rows)}")


if __name__ == "__main__":
    main()
