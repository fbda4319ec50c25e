"""Large models' shapes with random weights: what --dry-run says beside what a part of each takes, and peak memory.

    python -m tests.benchmarks.large_models [--shapes llama-3.2-1b ...] [--blocks 2] [--options "--bits 3"]

Blocks are quantized one by one, so a part has the peak memory of the whole; the last columns scale the part's time to
all blocks. Folders are made in a temporary folder, a tensor at a time, and deleted: two bytes a parameter of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.benchmarks.running import athena
from tests.conftest import DEMO
from toolchain.pipeline.published_shapes import SHAPES

LIMITS = {"llama-3.2-1b": 4.0, "qwen3-4b": 6.0, "llama-3.1-8b": 8.0}  # GB that a run is to stay under
_DEVIATION = 0.02


def write_model(shape: str, blocks: int, folder: Path) -> None:
    """A bfloat16 folder with the first `blocks` blocks of a shape and the bundled model's tokenizer."""
    folder.mkdir(parents=True)
    config = {**SHAPES[shape], "num_hidden_layers": blocks, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    draws, places = torch.Generator().manual_seed(0), {}
    for number, (name, empty) in enumerate(model.named_parameters()):  # a head that is tied comes once
        values = torch.ones(empty.shape, dtype=torch.bfloat16)
        if empty.ndim > 1:
            values = torch.randn(empty.shape, generator=draws).mul_(_DEVIATION).bfloat16()
        places[name] = f"part-{number:05d}.safetensors"
        save_file({name: values}, folder / places[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)


def measure(shape: str, blocks: int, options: str) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        model, out = Path(scratch) / "model", Path(scratch) / "quantized"
        write_model(shape, blocks, model)
        command = f"athena-export quantize {model} -o {out} {options}"
        predicted, _ = athena(f"{command} --dry-run")
        start = time.monotonic()
        totals, peak = athena(command)
        seconds = time.monotonic() - start
    whole = SHAPES[shape]["num_hidden_layers"] / blocks
    times = [predicted["seconds"] / 60, seconds / 60, predicted["seconds"] * whole / 60, seconds * whole / 60]
    memory = [predicted["peak_bytes"] / 1e9, peak / 1e9, LIMITS[shape]]
    sizes = [predicted["output_bytes"] / 1e6, totals["bytes"] / 1e6]
    cells = [f"{v:.1f}" for v in times] + [f"{v:.2f}" for v in memory] + [f"{v:.1f}" for v in sizes]
    return f"| {shape} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--options", default="--bits 3 --sequences 16 --preset fast")
    args = parser.parse_args()
    print(
        "| shape | minutes predicted | measured | all blocks, predicted | measured part scaled "
        "| GB predicted | measured | aim | MB predicted | measured |\n|" + "---|" * 10
    )
    for shape in args.shapes:
        print(measure(shape, args.blocks, args.options), flush=True)


if __name__ == "__main__":
    main()
