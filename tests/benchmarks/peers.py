"""Peers in the quality table: their own tools quantize, their dequantized weights are scored by our own `eval`.

    python -m tests.benchmarks.peers -o FOLDER --tools FOLDER_OF_LLAMA_CPP   (then: quality --page-only -o FOLDER)

So every row of the table has the same windows, the same float32 arithmetic and the same reference. llama.cpp:
llama-quantize with an importance matrix by llama-imatrix from the first half of the text (scribe-6M; stories260K's
rows of 64 columns fit only the types with blocks of 32, which take no matrix), embedding at q8_0; `pip install gguf`.
hqq: `pip install hqq termcolor`, group size 64, embedding 8-bit as in our rows. onnxruntime-genai: its builder's int4.
auto-round (`--auto-round PYTHON` of an environment with `pip install auto-round`): symmetric, groups of 128, scribe-6M
only, because it leaves matrices alone whose rows no group divides. Effective bits count everything stored for the
linear layers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.benchmarks.gguf_files import Tensors, read_gguf, write_gguf
from tests.benchmarks.peer_genai import genai_int4
from tests.benchmarks.quality import SHARED, TEXTS, WINDOWS, other_text
from tests.benchmarks.running import athena, watched

LLAMA_TYPES = {
    "stories260K": ("Q5_0", "Q4_0", "IQ4_NL"),
    "scribe-6M": (
        "Q4_0", "Q4_K_M", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q3_K_S", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS",
        "IQ2_XXS",
    ),
}  # fmt: skip
Made = tuple[Tensors, float, int]  # dequantized tensors, stored bits per weight, peak memory in bytes (0: not known)


def llama_cpp(model: str, kind: str, tools: Path, work: Path) -> Made:
    source = SHARED / "models" / model
    base, matrix, out = work / f"{model}.gguf", work / f"{model}.imatrix", work / f"{model}-{kind}.gguf"
    if not base.exists():
        write_gguf(source, base)
    options: list[object] = ["--token-embedding-type", "q8_0"]
    if model != "stories260K":
        if not matrix.exists():
            text = (SHARED / "text" / TEXTS[model]).read_text(encoding="utf-8")
            (work / "calibration.txt").write_text(text[: len(text) // 2])
            watched([tools / "llama-imatrix", "-m", base, "-f", work / "calibration.txt", "-o", matrix, "-c", 256])
        options += ["--imatrix", matrix]
    _, peak = watched([tools / "llama-quantize", *options, base, out, kind])
    return *read_gguf(out, source), peak


def hqq(model: str, bits: int) -> Made:
    import torch
    from hqq.core.quantize import Quantizer

    from toolchain.quantize.methods import rtn
    from toolchain.settings.quantize import QuantizeSettings

    tensors: Tensors = {}
    size = weights = 0
    for name, value in load_file(SHARED / "models" / model / "model.safetensors").items():
        tensors[name] = value.astype(np.float32)
        if value.ndim != 2:
            continue
        if "layers" not in name:
            tensors[name] = rtn.quantize(tensors[name], None, QuantizeSettings(method="rtn", bits=8)).dequantized()
            continue
        group = 64 if value.size % 64 == 0 else value.shape[1]
        packed, meta = Quantizer.quantize(
            torch.from_numpy(tensors[name]), nbits=bits, group_size=group, axis=1, device="cpu",
            compute_dtype=torch.float32, optimize=True,
        )  # fmt: skip
        tensors[name] = Quantizer.dequantize(packed, meta).float().numpy().reshape(value.shape)
        size += value.size * bits + value.size // group * 32  # float16 scale and zero point for each group
        weights += value.size
    return tensors, size / weights, 0


def auto_round(model: str, bits: int, python: Path, work: Path) -> Made:
    source, text = SHARED / "models" / model, SHARED / "text" / TEXTS[model]
    out = work / f"{model}-auto-round-{bits}.safetensors"
    script = Path(__file__).with_name("peer_auto_round.py")
    printed, peak = watched([python, script, source, text, 0.5, 256, bits, 128, out])
    return load_file(out), json.loads(printed.splitlines()[-1])["bits"], peak


def measure(model: str, method: str, make: Callable[[], Made], out: Path, command: str) -> None:
    """Score one peer and keep its row, unless an earlier run has."""
    folder = out / f"{model}-{method.replace(' ', '-')}"
    kept = folder / "row.json"
    if kept.exists():
        return
    source, text = SHARED / "models" / model, SHARED / "text" / TEXTS[model]
    start = time.monotonic()
    tensors, effective_bits, peak = make()
    seconds = time.monotonic() - start
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    evaluate = f"athena-export eval {folder} --text {text} --part 0.5:1 --reference {source} --limit {WINDOWS[model]}"
    elsewhere = other_text(folder, source)
    row = {**athena(evaluate)[0], "model": model, "method": method, "bits": round(effective_bits), "seconds": seconds}
    row |= {"effective_bits": effective_bits, "file_bytes": 0, "commands": [command, evaluate, elsewhere]}
    row |= {"other": athena(elsewhere)[0], "peak_bytes": peak}
    kept.write_text(json.dumps(row))
    (folder / "model.safetensors").unlink()
    print(method, f"{effective_bits:.3f} bits, perplexity {row['perplexity']:.3f}, KL {row['kl']:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out"))
    parser.add_argument(
        "--tools", type=Path, help="folder with llama-quantize and llama-imatrix; without: no llama.cpp"
    )
    parser.add_argument("--auto-round", type=Path, help="python with auto-round; without: none")
    args = parser.parse_args()
    work = args.output / "peers"
    work.mkdir(parents=True, exist_ok=True)
    command = f"python -m tests.benchmarks.peers -o {args.output}" + (f" --tools {args.tools}" if args.tools else "")
    command += " --auto-round PYTHON" if args.auto_round else ""
    for model in TEXTS:
        for bits in (4, 3, 2):
            measure(model, f"hqq {bits}", lambda m=model, b=bits: hqq(m, b), args.output, command)  # type: ignore[misc]
        source = SHARED / "models" / model
        measure(model, "genai int4", lambda s=source, m=model: genai_int4(s, work / f"{m}-genai"), args.output, command)  # type: ignore[misc]
        for bits in (4, 3, 2) if args.auto_round and model == "scribe-6M" else ():
            make = lambda m=model, b=bits: auto_round(m, b, args.auto_round, work)  # type: ignore[misc]  # noqa: E731
            measure(model, f"auto-round {bits}", make, args.output, command)
        for kind in LLAMA_TYPES[model] if args.tools else ():
            make = lambda m=model, k=kind: llama_cpp(m, k, args.tools, work)  # type: ignore[misc]  # noqa: E731
            measure(model, f"llama.cpp {kind}", make, args.output, command)


if __name__ == "__main__":
    main()
