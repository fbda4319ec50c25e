"""Speed and memory of one exported folder in onnxruntime-genai by what computes its matrices, beside our runtime.

native: `lower --target native`; MatMulNBits: `lower --target genai`, exact (8 bits) and with --reencode (4 bits,
lossy). Every measurement is a process of its own; rounds are interleaved; medians are printed.

athena-export export --random tinyllama-1.1b --bits 4 -o OUT
python -m tests.benchmarks.native_speed OUT [--rounds 3] [--prompt 512] [--decoded 48] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VARIANTS = {
    "genai, native library": ("--target", "native"),
    "genai, MatMulNBits, exact": ("--target", "genai"),
    "genai, MatMulNBits, --reencode": ("--target", "genai", "--reencode"),
}
OURS = "athena-export run"
_UNITS = {"load, s": 2, "prefill, tokens/s": 0, "decode, tokens/s": 1, "peak memory, MB": 0}


def genai(folder: str, prompt: int, decoded: int) -> tuple[float, float, float]:
    """Seconds of loading, of a prefill of `prompt` tokens and of one decoded token."""
    import onnxruntime_genai as og

    start = time.perf_counter()
    model = og.Model(folder)
    loaded = time.perf_counter() - start
    best = [float("inf")] * 2
    for _ in range(3):  # the first one also reads the weights
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=prompt + decoded + 1, min_length=prompt + decoded + 1)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.arange(5, 5 + prompt, dtype=np.int32))
        middle = time.perf_counter()
        for _ in range(decoded):
            generator.generate_next_token()
        best = [min(a, b) for a, b in zip(best, (middle - start, (time.perf_counter() - middle) / decoded))]
    return loaded, *best


def ours(folder: str, prompt: int, decoded: int) -> tuple[float, float, float]:
    """The same of our runtime."""
    from runtime_py.load import open_model

    start = time.perf_counter()
    model, why = open_model(Path(folder))
    assert not why, why
    loaded = time.perf_counter() - start
    best = [float("inf")] * 2
    for _ in range(3):
        state = model.new_state()
        start = time.perf_counter()
        token = int(model.forward(state, np.arange(5, 5 + prompt))[-1].argmax())
        middle = time.perf_counter()
        for _ in range(decoded):
            token = int(model.forward(state, [token])[-1].argmax())
        best = [min(a, b) for a, b in zip(best, (middle - start, (time.perf_counter() - middle) / decoded))]
    return loaded, *best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decoded", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=["genai", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = genai if args.child == "genai" else ours
        load, prefill, decode = measure(str(args.folder), args.prompt, args.decoded)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps([load, args.prompt / prefill, 1 / decode, peak]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate(VARIANTS)}
        for name, options in VARIANTS.items():
            lower = [sys.executable, "-m", "toolchain", "lower", args.folder, *options, "-o", folders[name]]
            subprocess.run(lower, check=True)
            path = folders[name] / "genai_config.json"
            config = json.loads(path.read_text())
            config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = args.threads
            path.write_text(json.dumps(config))
        rows: dict[str, list[list[float]]] = {name: [] for name in (*VARIANTS, OURS)}
        for _ in range(args.rounds):
            for name, found in rows.items():
                kind, folder = ("ours", args.folder) if name == OURS else ("genai", folders[name])
                options = ["--prompt", str(args.prompt), "--decoded", str(args.decoded), "--child", kind]
                done = subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.native_speed", str(folder), *options],
                    env={**os.environ, "ATHENA_THREADS": str(args.threads)}, capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr[-1000:]
                found.append(json.loads(done.stdout.splitlines()[-1]))
    print("| | " + " | ".join(_UNITS) + " |\n|---|" + "---|" * len(_UNITS))
    for name, found in rows.items():
        values = np.median(found, axis=0)
        print(f"| {name} | " + " | ".join(f"{v:,.{d}f}" for v, d in zip(values, _UNITS.values())) + " |")


if __name__ == "__main__":
    main()
