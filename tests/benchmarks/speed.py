"""Speed beside llama.cpp and onnxruntime-genai: one interleaved run on one machine, medians and ratios.

    python -m tests.benchmarks.speed --shape tinyllama-1.1b --llama-bench PATH [--genai PYTHON MODEL] -o docs/speed.md

llama-bench and llama-quantize lie in one folder (build them from llama-cpp-python's source package:
`cmake -B build && cmake --build build --target llama-bench llama-quantize`); `pip install gguf`. With gcc 12 llama.cpp
leaves its AMX tile configuration uninitialised and crashes; one line before `_tile_loadconfig(&tc)` in
ggml/src/ggml-cpu/amx/mmq.cpp mends it: __asm__ volatile("" : : "r"(&tc) : "memory");
MODEL is a folder made by onnxruntime-genai's builder (-p int4 -e cpu, int4_accuracy_level=4), PYTHON one that has it.
ik_llama.cpp's llama-bench is built from its source in the same way; it reads the same files, packs weights anew as it
starts (-rtr 1) and begins at a depth by reading a prompt of that length first (-gp).
Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.random_gguf import write_gguf
from toolchain.pipeline.published_shapes import SHAPES

GGUF_TYPES = ("Q4_0", "Q4_K_M", "IQ4_NL", "Q3_K_M", "Q2_K")
PROMPTS, DEPTHS, DECODED = (128, 512), (64, 2048), 32
Row = dict[str, float]
CLI = (sys.executable, "-m", "toolchain")
GENAI = Path(__file__).with_name("genai_speed.py")


@dataclass(frozen=True)
class Contender:
    """Something that can be measured once, in a process of its own."""

    name: str
    megabytes: float
    measure: Callable[[], Row]


def peers_environment() -> dict[str, str]:
    """Ours without what runtime_py asks OpenMP for: passive waiting takes half or two thirds of llama.cpp's speed."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}


def capture(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=peers_environment())
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(shape: str, bits: int, codes: str, work: Path, threads: int, mmap: str) -> Contender:
    """A folder of random codes. codes: a --format, or nothing for the default's."""
    folder = work / "-".join(filter(None, (shape, str(bits), codes)))
    if not folder.exists():
        capture(
            *CLI, "export", "--random", shape, "-o", folder, "--bits", bits, *(["--format", codes] if codes else [])
        )
    name = f"athena-export, {bits} bits{f' {codes}' if codes else ''}{'' if mmap == '--mmap' else f' {mmap}'}"
    return folder_contender(name, folder, threads, mmap)


def folder_contender(name: str, folder: Path, threads: int, mmap: str) -> Contender:
    """A model folder, run by `athena-export bench`."""

    def measure() -> Row:
        lengths = ["--prompt-lengths", ",".join(map(str, PROMPTS)), "--depths", ",".join(map(str, DEPTHS))]
        options = ["--rounds", 1, "--tokens", DECODED, "--threads", threads, mmap, "--json"]
        data = json.loads(capture(*CLI, "bench", folder, *lengths, *options))
        row = {f"prefill {n}": one["median"] for n, one in data["prefill"]["by_length"].items()}
        row |= {f"decode at {n}": one["median"] for n, one in data["decode"]["by_depth"].items()}
        return row | {"bandwidth": data["decode"]["bandwidth_fraction"], "peak": data["peak_rss_bytes"] / 1e6}

    megabytes = sum(f.stat().st_size for f in folder.glob("model.onnx*")) / 1e6
    return Contender(name, megabytes, measure)


def llama(bench: Path, path: Path, kind: str, threads: int) -> Contender:
    """llama.cpp with flash attention on and off: what is faster at each length counts."""

    def measure() -> Row:
        base = ["-m", path, "-t", threads, "-r", 2, "-o", "json", "-fa", "on,off"]
        prefill = json.loads(capture(bench, *base, "-p", ",".join(map(str, PROMPTS)), "-n", 0))
        decode = json.loads(capture(bench, *base, "-p", 0, "-n", DECODED, "-d", ",".join(map(str, DEPTHS))))
        row: Row = {}
        for what, place, found in (("prefill", "n_prompt", prefill), ("decode at", "n_depth", decode)):
            for one in found:
                key = f"{what} {one[place]}"
                row[key] = max(row.get(key, 0.0), one["avg_ts"])
        return row

    return Contender(f"llama.cpp {kind}", path.stat().st_size / 1e6, measure)


def ik_llama(bench: Path, path: Path, kind: str, threads: int) -> Contender:
    """ik_llama.cpp with flash attention on and off, weights packed anew: what is faster at each length counts."""

    def measure() -> Row:
        base = ["-m", path, "-t", threads, "-r", 2, "-o", "json", "-fa", "1,0", "-rtr", 1]
        depths = [word for depth in DEPTHS for word in ("-gp", f"{depth},{DECODED}")]
        found = json.loads(capture(bench, *base, "-p", ",".join(map(str, PROMPTS)), "-n", 0, *depths))
        row: Row = {}
        for one in found:
            key = f"decode at {one['n_prompt']}" if one["n_gen"] else f"prefill {one['n_prompt']}"
            row[key] = max(row.get(key, 0.0), one["avg_ts"])
        return row

    return Contender(f"ik_llama.cpp {kind}", path.stat().st_size / 1e6, measure)


def genai(python: str, model: Path) -> Contender:
    def measure() -> Row:
        lengths = [",".join(map(str, numbers)) for numbers in (PROMPTS, DEPTHS)]
        return json.loads(capture(python, GENAI, model, *lengths, DECODED).strip().split("\n")[-1])

    size = sum(f.stat().st_size for f in model.glob("model.onnx*")) / 1e6
    return Contender("onnxruntime-genai int4", size, measure)


def gguf_files(shape: str, bench: Path, work: Path, kinds: list[str]) -> list[tuple[str, Path]]:
    files = [(kind, work / f"{shape}-{kind}.gguf") for kind in kinds]
    if not all(path.exists() for _, path in files):
        full = work / f"{shape}-f16.gguf"
        write_gguf(shape, full)
        for kind, path in files:
            capture(bench.with_name("llama-quantize"), full, path, kind)
        full.unlink()
    return files


def table(rows: dict[str, list[Row]], contenders: list[Contender]) -> list[str]:
    """Markdown: medians, and in brackets the ratio to llama.cpp Q4_0 of the same run."""
    medians = {
        name: {key: statistics.median(r[key] for r in measured) for key in measured[0]}
        for name, measured in rows.items()
    }
    base = medians.get("llama.cpp Q4_0")
    columns = [name for name in next(iter(medians.values())) if name.startswith(("prefill", "decode"))]
    lines = ["| | MB | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for contender in contenders:
        cells = []
        for column in columns:
            value = medians[contender.name][column]
            ratio = f" ({value / base[column]:.2f}x)" if base else ""
            cells.append(f"{value:.1f}{ratio}")
        lines.append(f"| {contender.name} | {contender.megabytes:.0f} | " + " | ".join(cells) + " |")
    for contender in contenders:
        own = medians[contender.name]
        if "bandwidth" in own:
            lines.append("")
            lines.append(
                f"{contender.name}: decode reads weights at {100 * own['bandwidth']:.0f} % of the measured read "
                f"bandwidth, peak memory {own['peak']:.0f} MB."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama-1.1b", help=f"{', '.join(SHAPES)}; NAME:BLOCKS for a part")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--ik-llama-bench", type=Path, help="with --llama-bench, whose files it reads")
    parser.add_argument("--genai", nargs=2, metavar=("PYTHON", "MODEL"))
    parser.add_argument("--types", nargs="*", default=list(GGUF_TYPES), help="of llama.cpp")
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3, 2])
    parser.add_argument(
        "--reading", nargs="*", default=["--mmap", "--no-mmap"], help="how weights are read: mmap, no-mmap",
        type=lambda word: f"--{word}",
    )  # fmt: skip
    parser.add_argument(
        "--formats", nargs="*", default=[""], help="of our codes (--format); the default's if not given"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "athena-speed")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    contenders = [
        ours(args.shape, bits, codes, args.work, args.threads, mmap)
        for bits in args.bits
        for codes in args.formats
        for mmap in args.reading
    ]
    if args.llama_bench:
        files = gguf_files(args.shape, args.llama_bench, args.work, args.types)
        contenders += [llama(args.llama_bench, path, kind, args.threads) for kind, path in files]
        if args.ik_llama_bench:
            contenders += [ik_llama(args.ik_llama_bench, path, kind, args.threads) for kind, path in files]
    if args.genai:
        contenders.append(genai(args.genai[0], Path(args.genai[1])))
    rows: dict[str, list[Row]] = {c.name: [] for c in contenders}
    for number in range(args.rounds):
        for contender in contenders:
            row = contender.measure()
            rows[contender.name].append(row)
            print(number, contender.name, {k: round(v, 2) for k, v in row.items()}, file=sys.stderr, flush=True)
    lines = table(rows, contenders)
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
