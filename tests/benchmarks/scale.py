"""A model of real size and random weights, quantized on this machine: time and peak memory beside what --dry-run says.

    python -m tests.benchmarks.scale -o FOLDER [--shape tinyllama-1.1b] [--blocks N] [--options "--bits 3"]

Needs twice the float16 model in free disk space. The checkpoint continues where a stopped run was; its time is then
that of the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from export.graph.archs import model_spec
from tests.benchmarks.quality import SHARED
from tests.benchmarks.running import athena
from toolchain.pipeline.published_shapes import SHAPES

_DEVIATION = 0.02


def write_model(shape: str, blocks: int | None, folder: Path) -> None:
    """A float16 checkpoint, one file a block, with scribe-6M's tokenizer."""
    folder.mkdir(parents=True)
    config = {**SHAPES[shape], "torch_dtype": "float16"}
    config["num_hidden_layers"] = blocks or config["num_hidden_layers"]
    spec, names = model_spec(config), model_spec(config).block
    query, pair = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = {
        names.query: (query, spec.hidden_size), names.key: (pair, spec.hidden_size),
        names.value: (pair, spec.hidden_size), names.attention_output: (spec.hidden_size, query),
        names.gate: (spec.feed_forward, spec.hidden_size), names.up: (spec.feed_forward, spec.hidden_size),
        names.down: (spec.hidden_size, spec.feed_forward),
    }  # fmt: skip
    draws, places = torch.Generator().manual_seed(0), {}

    def write(file: str, matrices: dict[str, tuple[int, ...]], norms: list[str]) -> None:
        tensors = {n: (torch.randn(s, generator=draws) * _DEVIATION).half() for n, s in matrices.items()}
        tensors |= {name: torch.ones(spec.hidden_size, dtype=torch.float16) for name in norms}
        save_file(tensors, folder / file)
        places.update(dict.fromkeys(tensors, file))

    for block in range(spec.blocks):
        prefix = spec.block_name(block)
        norms = [f"{prefix}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")]
        write(f"block-{block:05d}.safetensors", {f"{prefix}{n}.weight": s for n, s in shapes.items() if n}, norms)
    outside = {f"{name}.weight": shape for name, shape in spec.outside().items()}
    write("outside.safetensors", outside, [f"{spec.final_norm}.weight"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHARED / "models" / "scribe-6M" / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="tinyllama-1.1b")
    parser.add_argument("--blocks", type=int, help="fewer blocks than the shape has")
    parser.add_argument("--options", default="--bits 3 --sequences 32")
    args = parser.parse_args()
    model, out = args.output / "model", args.output / "quantized"
    if not model.exists():
        write_model(args.shape, args.blocks, model)
    command = f"athena-export quantize {model} -o {out} {args.options}"
    predicted = athena(f"{command} --dry-run")[0]
    print(json.dumps(predicted), flush=True)
    start = time.monotonic()
    totals, peak = athena(command)
    seconds = time.monotonic() - start
    print("| | predicted | measured |\n|---|---|---|")
    print(f"| minutes | {predicted['seconds'] / 60:.1f} | {seconds / 60:.1f} |")
    print(f"| seconds per million parameters | {predicted['seconds_per_million']:.2f} ", end="")
    print(f"| {seconds / totals['parameters'] * 1e6:.2f} |")
    print(f"| peak memory, GB | {predicted['peak_bytes'] / 1e9:.2f} | {peak / 1e9:.2f} |")
    print(f"| checkpoint, MB | {predicted['output_bytes'] / 1e6:.1f} | {totals['bytes'] / 1e6:.1f} |")
    print(f"| effective bits | {predicted['effective_bits']:.3f} | {totals['effective_bits']:.3f} |")


if __name__ == "__main__":
    main()
