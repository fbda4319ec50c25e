"""Quality against stored bits: every method on the real models of ../shared, by the commands a user types.

    python -m tests.benchmarks.quality -o FOLDER [--best-steps stories260K=800 scribe-6M=400]

Each row runs `athena-export export` and `athena-export eval`; finished rows in FOLDER are kept, so a stopped run goes
on where it was. Writes docs/quality.md (table and every command) and docs/quality.svg (KL and perplexity against
effective bits). Calibration is the first half of each text, evaluation the second, in windows of 256 tokens. The
column "eff. bits" counts everything stored for the linear layers; embedding and head are 8-bit in all rows. The
uniform methods have a float16 scale per row (stories260K, whose rows are short) or per 128 columns (scribe-6M).
"athena best" is the preset: trellis codes for matrices of 32,768 weights and more, so all of scribe-6M and none of
stories260K; "budget" beside that a width for every layer; "scalar" and "trellis all" say what codes there are. The
last two columns are measured on the first 100 windows of WikiText-2's test text, which neither model nor calibration
knows. Rows of llama.cpp, hqq, onnxruntime-genai and auto-round come from tests/benchmarks/peers.py: their own tools
quantize, our `eval` scores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.running import athena

SHARED = Path("../shared")
TEXTS = {"stories260K": "tinystories_val.txt", "scribe-6M": "scribe_valid.txt"}
WINDOWS = {"stories260K": 778, "scribe-6M": 200}  # all of the second half; the first 200 windows of it
UNIFORM_GROUP = {"stories260K": 0, "scribe-6M": 128}
OTHER_TEXT, OTHER_WINDOWS = "wikitext2_test.raw.txt", 100
METHODS = ("rtn", "gptq", "squeezellm", "aqlm", "athena", "athena best, scalar", "athena best, trellis all",
           "athena best", "athena best budget")  # fmt: skip
# AQLM's codebooks of 2,048 entries take 4 to 8 bits a weight in stories260K's matrices: no row.
SKIPPED = {("stories260K", "aqlm", bits) for bits in (2, 3, 4)} | {("scribe-6M", "aqlm", bits) for bits in (3, 4)}
COLUMNS = ("model", "method", "bits", "eff. bits", "files", "perplexity", "KL", "top-1", "time", "peak memory",
           "wikitext2 perplexity", "wikitext2 KL")  # fmt: skip


def other_text(folder: Path, source: Path) -> str:
    """The command that scores a folder on the text that nobody was calibrated on."""
    text = SHARED / "text" / OTHER_TEXT
    return (
        f"athena-export eval {folder} --text {text} --reference {source} --limit {OTHER_WINDOWS} --activations float32"
    )


def measure(model: str, method: str, bits: int, out: Path, best_steps: int) -> dict:
    """One row, run or read from an earlier run."""
    source, text = SHARED / "models" / model, SHARED / "text" / TEXTS[model]
    folder = out / f"{model}-{method.replace(',', '').replace(' ', '-')}-{bits}"
    asked = f"--budget {bits + 0.1}" if method.endswith("budget") else f"--bits {bits}"
    export = f"athena-export export {source} -o {folder} {asked} --method {method.split()[0]}"
    if method in ("rtn", "gptq") and UNIFORM_GROUP[model]:
        export += f" --group-size {UNIFORM_GROUP[model]}"
    if method.startswith("athena best"):
        codes = {"scalar": " --format vectors", "trellis all": " --format trellis"}.get(method.partition(", ")[2], "")
        export += f" --preset best{codes} --tune-steps {best_steps}"
    export += f" --calibration {text} --calibration-part 0:0.5"
    evaluate = f"athena-export eval {folder} --text {text} --part 0.5:1 --reference {source} --limit {WINDOWS[model]}"
    evaluate += " --activations float32"  # weights alone are compared
    elsewhere = other_text(folder, source)
    kept = folder / "row.json"
    if kept.exists():
        return json.loads(kept.read_text())
    start = time.monotonic()
    report, peak = athena(f"{export} --force")
    size, seconds = report["size"], time.monotonic() - start
    row = {
        **athena(evaluate)[0],
        "other": athena(elsewhere)[0],
        "peak_bytes": peak,
        "model": model,
        "method": method,
        "bits": bits,
        "seconds": seconds,
    }
    row |= {
        "effective_bits": size["effective_bits"],
        "file_bytes": size["file_bytes"],
        "commands": [export, evaluate, elsewhere],
    }
    kept.write_text(json.dumps(row))
    return row


def cells(row: dict) -> list[str]:
    return [
        row["model"],
        row["method"],
        str(row["bits"]),
        f"{row['effective_bits']:.3f}",
        f"{row['file_bytes'] / 1e6:.3f} MB" if row["file_bytes"] else "-",
        f"{row['perplexity']:.3f} ± {row['stderr']:.3f}",
        f"{row['kl']:.4f}",
        f"{100 * row['top1_agreement']:.1f} %",
        f"{row['seconds']:.0f} s",
        f"{row['peak_bytes'] / 1e6:.0f} MB" if row.get("peak_bytes") else "-",
        f"{row['other']['perplexity']:.2f}" if "other" in row else "-",
        f"{row['other']['kl']:.4f}" if "other" in row else "-",
    ]


def family(method: str) -> str:
    """Peers of tests/benchmarks/peers.py carry their type behind their name."""
    return method if method in METHODS else method.split()[0]


def picture(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    methods = (*METHODS, "llama.cpp", "hqq", "genai", "auto-round")
    lines: dict[str, Any] = {}
    grid = figure.subplots(2, len(TEXTS), squeeze=False)
    for column, model in enumerate(TEXTS):
        for line, (key, label) in enumerate((("perplexity", "perplexity / float32"), ("kl", "KL, nats per token"))):
            axes = grid[line][column]
            for number, method in enumerate(methods):
                chosen = [r for r in rows if r["model"] == model and family(r["method"]) == method]
                if not chosen:
                    continue
                chosen.sort(key=lambda r: r["effective_bits"])
                values = [r["kl"] if key == "kl" else r["perplexity"] / r["reference_perplexity"] for r in chosen]
                bits = [r["effective_bits"] for r in chosen]
                lines[method] = axes.plot(bits, values, ".-" if number < 10 else "x:", color=f"C{number % 10}")[0]
            axes.set_yscale("log")
            axes.set_xlabel("effective bits, linear layers")
            axes.set_ylabel(label)
            axes.set_title(model)
            axes.grid(alpha=0.3, which="both")
    named = [method for method in methods if method in lines]
    figure.legend([lines[method] for method in named], named, loc="outside lower center", ncols=4)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _base(rows: list[dict], model: str) -> str:
    found = (r["other"]["reference_perplexity"] for r in rows if r["model"] == model and "other" in r)
    return f"{next(found, float('nan')):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    parser.add_argument("--best-steps", nargs="*", default=["stories260K=800", "scribe-6M=400"])
    parser.add_argument("--models", nargs="*", default=list(TEXTS), help="measure these; the page needs all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="measure these; the page needs all")
    parser.add_argument("--bits", nargs="*", type=int, default=[4, 3, 2], help="measure these; the page needs all")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows in FOLDER")
    args = parser.parse_args()
    steps = {name: int(count) for name, count in (pair.split("=") for pair in args.best_steps)}
    rows = []
    if args.page_only:
        rows = [json.loads(path.read_text()) for path in sorted(args.output.glob("*/row.json"))]
    else:
        for method in args.methods:
            for model in args.models:
                for bits in args.bits:
                    if (model, method, bits) in SKIPPED:
                        continue
                    rows.append(measure(model, method, bits, args.output, steps.get(model, 1000)))
                    print(" | ".join(cells(rows[-1])), flush=True)
    if {r["model"] for r in rows} != set(TEXTS):
        return
    rows.sort(key=lambda r: (list(TEXTS).index(r["model"]), -r["effective_bits"]))
    base = [
        [m, "float32", "32", "-", "-", f"{next(r for r in rows if r['model'] == m)['reference_perplexity']:.3f}", "0",
         "100 %", "-", "-", _base(rows, m), "0"]
        for m in TEXTS
    ]  # fmt: skip
    table = [list(COLUMNS), ["---"] * len(COLUMNS), *base, *map(cells, rows)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    docs = Path("docs")
    docs.mkdir(exist_ok=True)
    picture(rows, docs / "quality.svg")
    commands = [command for row in rows for command in row["commands"]]
    intro = "\n".join((__doc__ or "").splitlines()[4:])
    page = [
        "# Quality against stored bits",
        "",
        "![quality](quality.svg)",
        "",
        intro,
        "",
        *lines,
        "",
        "## Commands",
        "",
    ]
    (docs / "quality.md").write_text("\n".join([*page, "```", *commands, "```", ""]))


if __name__ == "__main__":
    main()
