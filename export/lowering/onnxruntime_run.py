"""A process of its own: opens a folder in onnxruntime and runs a few tokens, told in one JSON line each way.

Started by check.py as a script, because onnxruntime may end the process that uses it. Asked on stdin:
{"folder", "source" or null, "library" or null, "run", "vocabulary", "tokens"}; answered on stdout: {"onnxruntime"} with
"difference" when both folders ran (root mean square, in units of the source's spread; null where the source's numbers
are not finite), or {"onnxruntime", "error"}.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def opened(folder: str, library: str | None) -> onnxruntime.InferenceSession:
    """With one thread, so that the numbers are the same every time, and without unpacking all codebooks to float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(library)
    model = str(Path(folder) / "model.onnx")
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def outputs(session: onnxruntime.InferenceSession, vocabulary: int, tokens: int) -> np.ndarray:
    """First output for tokens 0, 1, ...: all but the last at once, and the last behind the cache if there is one."""
    ids, cache = np.arange(tokens, dtype=np.int64)[None] % vocabulary, {}
    for value in session.get_inputs():
        if value.name.startswith("past_"):  # keys and values of no tokens, states of zeros
            shape = [1, *(size if isinstance(size, int) else 0 for size in value.shape[1:])]
            cache[value.name] = np.zeros(shape, _TYPES[value.type])
    cuts = [0, tokens - 1, tokens] if cache and tokens > 1 else [0, tokens]
    found = []
    for first, last in pairwise(cuts):
        known = {
            "input_ids": ids[:, first:last], "attention_mask": np.ones((1, last), np.int64),
            "position_ids": np.arange(first, last)[None], "token_type_ids": np.zeros((1, last), np.int64), **cache,
        }  # fmt: skip
        out = session.run(None, {value.name: known[value.name] for value in session.get_inputs()})
        found.append(np.asarray(out[0], np.float64))
        cache = dict(zip(cache, out[1:]))
    return np.concatenate(found, axis=1)


def difference(source: np.ndarray, found: np.ndarray) -> float | None:
    if not np.isfinite(source).all():
        return None
    return float(np.sqrt(np.mean((found - source) ** 2)) / max(float(source.std()), 1e-30))


def main() -> None:
    asked: dict[str, Any] = json.load(sys.stdin)
    told: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
    try:
        session = opened(asked["folder"], asked["library"])
        if asked["run"]:
            found = outputs(session, asked["vocabulary"], asked["tokens"])
            del session
            if asked["source"]:
                expected = outputs(opened(asked["source"], None), asked["vocabulary"], asked["tokens"])
                told["difference"] = difference(expected, found)
    except Exception as error:  # whatever it is, the folder does not run: its first line says why
        told["error"] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    print(json.dumps(told))


if __name__ == "__main__":
    main()
