"""Athena against round-to-nearest at equal stored bits, on the real models of ../shared, by the commands a user types.

    python -m tests.benchmarks.quality [-o FOLDER]

Each row runs `athena-export export` and `athena-export eval`; the markdown table, with every command, is printed and
written to docs/quality.md. Round-to-nearest gets at least Athena's effective bits: a float16 scale per row, or per 128
columns. Calibration is the first half of each text, evaluation the second; windows of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED = Path("../shared")
TEXTS = {"stories260K": "tinystories_val.txt", "scribe-6M": "scribe_valid.txt"}
RTN_GROUP = {"stories260K": 0, "scribe-6M": 128}
COLUMNS = ("model", "method", "eff. bits", "file", "perplexity", "KL", "top-1")


def athena(command: str) -> dict:
    """Run one athena-export command with --json."""
    words = [sys.executable, "-m", "toolchain", *command.split()[1:], "--json"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def row(model: str, method: str, bits: int, out: Path) -> tuple[list[str], list[str]]:
    """Cells of one table row and the commands that made it."""
    source, text = SHARED / "models" / model, SHARED / "text" / TEXTS[model]
    folder = out / f"{model}-{method}-{bits}"
    export = f"athena-export export {source} -o {folder} --bits {bits} --method {method}"
    if method == "rtn" and RTN_GROUP[model]:
        export += f" --group-size {RTN_GROUP[model]}"
    export += f" --calibration {text} --calibration-part 0:0.5 --force"
    evaluate = f"athena-export eval {folder} --text {text} --part 0.5:1 --reference {source}"
    size = athena(export)["size"]
    quality = athena(evaluate)
    cells = [
        model,
        f"{method} {bits}",
        f"{size['effective_bits']:.3f}",
        f"{size['file_bytes'] / 1e6:.3f} MB",
        f"{quality['perplexity']:.3f} ± {quality['stderr']:.3f}",
        f"{quality['kl']:.4f}",
        f"{100 * quality['top1_agreement']:.1f} %",
    ]
    return cells, [export, evaluate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=None, help="keep the exported folders here")
    parser.add_argument("--write", type=Path, default=Path("docs/quality.md"))
    args = parser.parse_args()
    out = args.output or Path(tempfile.mkdtemp())
    table, commands = [list(COLUMNS), ["---"] * len(COLUMNS)], []
    for model, text in TEXTS.items():
        source = SHARED / "models" / model
        evaluate = f"athena-export eval {source} --text {SHARED / 'text' / text} --part 0.5:1"
        base = athena(evaluate)
        parameters = (source / "model.safetensors").stat().st_size
        table.append([model, "float32", "-", f"{parameters / 1e6:.3f} MB", f"{base['perplexity']:.3f}", "0", "100 %"])
        commands.append(evaluate)
        for bits in (4, 3, 2):
            for method in ("athena", "rtn"):
                cells, used = row(model, method, bits, out)
                print(" | ".join(cells), flush=True)
                table.append(cells)
                commands += used
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    text = ["# Quality at equal stored bits", "", *(__doc__ or "").splitlines()[4:], "", *lines, "", "## Commands", ""]
    args.write.parent.mkdir(exist_ok=True)
    args.write.write_text("\n".join([*text, "```", *commands, "```", ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
