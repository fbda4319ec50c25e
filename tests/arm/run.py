"""Computes the cases here, then on an emulated ARM with i8mm, with dot products, with neither (`make test-arm`).

python -m tests.arm.run FOLDER_OF_PREPARE_SH [--widths 234] [--model MODEL_FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from export.native.build import MACHINES, build_library, library_name, this_machine
from runtime_py.machine.isa import pick
from tests.arm.cases import group_products, products
from tests.arm.generation import generation
from tests.arm.native import write_cases

# Whose kernels are compiled here: names of the processor in qemu.
BOARDS = {"rpi5": "cortex-a76", "rpi4": "cortex-a72", "aarch64-i8mm": "max"}
CPUS = {
    "neoni8mm": ("generic", "+neon,+dotprod,+fullfp16,+i8mm"),
    "neondot": ("cortex-a76", "+neon,+dotprod,+fullfp16"),
    "neon": ("cortex-a72", "+neon"),
}
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Exit status 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", type=Path)
    parser.add_argument("--widths", default="12345678")
    parser.add_argument("--trellis", default="1234", help="widths of trellis codes")
    parser.add_argument("--cpus", nargs="*", choices=list(CPUS), default=list(CPUS))
    parser.add_argument(
        "--boards", nargs="*", choices=list(BOARDS), default=list(BOARDS), help="to run kernels made here"
    )
    parser.add_argument("--model", type=Path, help="model folder; default: the demo model, quantized now")
    parser.add_argument("--no-native", dest="native", action="store_false", help="without the library for onnxruntime")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or _stories(Path(scratch))
        widths, paths = (tuple(int(b) for b in given) for given in (args.widths, args.trellis))
        expected = products(pick(), widths, paths) | group_products(pick()) | generation(model)
        reference = Path(scratch) / "expected.npz"
        np.savez(reference, **expected)
        cases = Path(scratch) / "native"
        if args.native:
            cases.mkdir()
            build_library("aarch64", cases / library_name("aarch64"))
            write_cases(cases, widths, build_library(this_machine(), cases / "x86.so"))
        for board in args.boards:
            cpu = BOARDS[board]
            start, kernels = time.perf_counter(), Path(scratch) / board
            subprocess.run(
                ["athena-export", "warmup", model, "--machine", board, "-o", kernels],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            run = ["qemu-aarch64-static", "-cpu", cpu, "-L", args.arm / "root", args.arm / "root/usr/bin/python3.11"]
            environment = {
                **os.environ, "PYTHONPATH": f"{args.arm / 'site'}:{ROOT}", "ATHENA_THREADS": "2",
                "ATHENA_CACHE_DIR": f"{scratch}/{board}-cache",
            }  # fmt: skip
            subprocess.run(
                [*run, "-m", "tests.arm.objects", reference, model, kernels], env=environment, cwd=ROOT, check=True
            )
            print(f"{board}: {time.perf_counter() - start:.0f} s, compiling here and running under qemu", flush=True)
        for name in args.cpus:
            cpu, features = CPUS[name]
            start = time.perf_counter()
            environment = {
                **os.environ, "PYTHONPATH": f"{args.arm / 'site'}:{ROOT}", "NUMBA_CPU_NAME": cpu,
                "NUMBA_CPU_FEATURES": features, "ATHENA_CACHE_DIR": f"{scratch}/{name}", "ATHENA_THREADS": "2",
            }  # fmt: skip
            root = args.arm / "root"
            emulated = ["qemu-aarch64-static", "-cpu", "max", "-L", root, root / "usr/bin/python3.11", "-m"]
            environment["ATHENA_ISA"] = name
            steps = [["tests.arm.check", reference, args.widths, args.trellis]]
            if args.native and name in MACHINES["aarch64"].kernels:  # first, because it takes seconds
                steps.insert(0, ["tests.arm.native", cases, cases / library_name("aarch64"), name])
            for step in steps:
                subprocess.run([*emulated, *step], env=environment, cwd=ROOT, check=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s under qemu", flush=True)


def _stories(scratch: Path) -> Path:
    """stories260K at 3 bits where ../shared has it, else the bundled demo model."""
    source = ROOT.parent / "shared" / "models" / "stories260K"
    source = source if source.exists() else ROOT / "toolchain" / "demo" / "athena-demo-2M"
    folder = scratch / "model"
    subprocess.run(["athena-export", "export", source, "-o", folder, "--bits", "3", "--preset", "fast"], check=True)
    return folder


if __name__ == "__main__":
    main()
