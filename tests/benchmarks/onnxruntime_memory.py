"""Loading time, seconds a token and peak memory of a model folder in stock onnxruntime; one process a figure.

    python -m tests.benchmarks.onnxruntime_memory FOLDER [--no-folding]

--no-folding: codebooks are unpacked at every use instead of once at load (docs/lowering.md).
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import onnxruntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--no-folding", action="store_true")
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    if args.no_folding:
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(f"{args.folder}/model.onnx", options)
    loaded = time.perf_counter() - start
    feeds = {"input_ids": np.array([[5]]), "attention_mask": np.ones((1, 1), np.int64), "position_ids": np.array([[0]])}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    session.run(["logits"], feeds)
    start = time.perf_counter()
    session.run(["logits"], feeds)
    token, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"load {loaded:.1f} s, token {token:.3f} s, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
