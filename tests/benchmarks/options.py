"""What each setting of the quantizer is worth, one at a time: the measurements behind the defaults.

    python -m tests.benchmarks.options -o FOLDER [--models stories260K scribe-6M]

3 bits, no end-to-end tuning, calibration and evaluation as in quality.py; finished rows in FOLDER are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.benchmarks.quality import SHARED, TEXTS, WINDOWS
from tests.benchmarks.running import athena

ROWS = {
    "default": "",
    "guided": "--guided",
    "guided, 4 groups of rows": "--guided --guided-groups 4",
    "8 passes": "--passes 8",
    "low rank 2": "--rank 2",
    "0.45 % apart, by sensitivity": "--outliers 0.0045",
    "0.45 % apart, by gradient": "--outliers 0.0045 --outliers-by gradient",
    "0.45 % apart, by magnitude": "--outliers 0.0045 --outliers-by magnitude",
    "values rotated": "--rotation values",
    "equalized": "--equalize",
    "blocks tuned, 100 steps": "--block-steps 100",
    "trellis": "--format trellis",
    "trellis, guided": "--format trellis --guided",
    "trellis, guided, budget": "--format trellis --guided --budget 3.1",
    "trellis, guided, 0.45 % apart": "--format trellis --guided --outliers 0.0045",
    "trellis, guided, values rotated": "--format trellis --guided --rotation values",
    "trellis, guided, equalized": "--format trellis --guided --equalize",
    "trellis, guided, blocks tuned": "--format trellis --guided --block-steps 100",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    parser.add_argument("--models", nargs="*", default=["stories260K"], choices=list(TEXTS))
    args = parser.parse_args()
    print("| model | setting | eff. bits | perplexity | KL |\n|---|---|---|---|---|")
    for model in args.models:
        source, text = SHARED / "models" / model, SHARED / "text" / TEXTS[model]
        for name, options in ROWS.items():
            folder = args.output / f"{model}-option-{name.replace(' ', '-').replace('%', 'percent')}"
            kept = folder / "option.json"
            if not kept.exists():
                bits = "" if "--budget" in options else "--bits 3"
                command = f"athena-export export {source} -o {folder} {bits} {options} --calibration {text}"
                size = athena(f"{command} --calibration-part 0:0.5 --force")[0]["size"]
                score = f"athena-export eval {folder} --text {text} --part 0.5:1 --reference {source}"
                row = athena(f"{score} --limit {WINDOWS[model]} --activations float32")[0]
                kept.write_text(json.dumps({**row, "effective_bits": size["effective_bits"]}))
            row = json.loads(kept.read_text())
            print(
                f"| {model} | {name} | {row['effective_bits']:.3f} | {row['perplexity']:.3f} | {row['kl']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
