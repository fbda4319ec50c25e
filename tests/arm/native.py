"""The native library for aarch64 in onnxruntime's own aarch64 wheel, under qemu, bit by bit against x86.

write_cases makes, here: one model for each width, tokens and what x86 computes. On the ARM side:
python -m tests.arm.native FOLDER LIBRARY ISA
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def session(model: Path, library: Path):
    """onnxruntime with the library registered."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def write_cases(folder: Path, widths: tuple[int, ...], library: Path) -> None:
    """Models, inputs and x86's outputs: a product of one token, of 20, and a gather, in whole blocks and tails."""
    from export.contract.formats.codebook import CodebookLayout
    from tests.export.native.test_native import one_node
    from tests.runtime_py.engine.test_products import random_parts

    rng = np.random.default_rng(0)
    for bits in widths:
        for columns in (640, 300):
            layout = CodebookLayout(bits, columns, 33)
            parts = random_parts(layout, rng)
            for kind, x in (
                ("vector", rng.standard_normal((1, columns)).astype(np.float32)),
                ("product", rng.standard_normal((20, columns)).astype(np.float32)),
                ("gather", rng.integers(0, 33, 5)),
            ):
                model = folder / f"{kind}-{bits}-{columns}.onnx"
                model.write_bytes(one_node(layout, parts, gather=kind == "gather"))
                np.savez(model.with_suffix(".npz"), x=x, y=session(model, library).run(["y"], {"x": x})[0])


def main() -> None:
    """Exit status 1 names the first case that differs."""
    import ctypes

    folder, library, isa = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    find = ctypes.CDLL(str(library)).AthenaKernels
    find.restype = ctypes.POINTER(ctypes.c_char_p)
    if find().contents.value != isa.encode():
        raise SystemExit(f"the library picks {find().contents.value!r}, not {isa}")
    cases = sorted(folder.glob("*.onnx"))
    for model in cases:
        case = np.load(model.with_suffix(".npz"))
        found = session(model, library).run(["y"], {"x": case["x"]})[0]
        if not np.array_equal(found, case["y"]):
            raise SystemExit(f"{isa}: {model.stem} differs from x86:\n{found}\n{case['y']}")
    print(f"{isa}: {len(cases)} models in onnxruntime equal to x86 bit by bit", flush=True)


if __name__ == "__main__":
    main()
