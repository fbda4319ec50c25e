"""onnxruntime-genai's own int4 export as dequantized Hugging Face tensors, for the quality table (peers.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import load_file

from tests.benchmarks.running import watched

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}


def genai_int4(source: Path, out: Path) -> tuple[dict[str, np.ndarray], float, int]:
    """Tensors under their Hugging Face names, stored bits per weight over the blocks' matrices, peak memory in bytes.

    The builder's defaults: round to nearest, 4 bits, symmetric, a float32 scale for every 32 columns; counted as
    float16, which the operator takes as well. Embedding and head keep their float32 values here.
    """
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    _, peak = watched([*builder, "-m", source, "-o", out, "-p", "int4", "-e", "cpu"])
    tensors = {name: value.astype(np.float32) for name, value in load_file(source / "model.safetensors").items()}
    model = onnx.load(str(out / "model.onnx"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    size = weights = 0
    for node in model.graph.node:
        if node.op_type != "MatMulNBits" or "/layers." not in node.name:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        codes, scales = (stored[name] for name in node.input[1:3])
        assert attributes["bits"] == 4 and len([name for name in node.input if name]) == 3  # zero point 8
        values = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1).astype(np.float32) - 8
        rows, columns = attributes["N"], attributes["K"]
        matrix = (values * scales.reshape(rows, -1, 1)).reshape(rows, -1)[:, :columns]
        size += 8 * codes.size + 16 * scales.size
        weights += rows * columns
        _, _, _, layer, part, name = (*node.name.split("/")[:2], "", *node.name.split("/")[2:5])
        prefix = f"model.{layer}.{'self_attn' if part == 'attn' else part}."
        for piece in PACKED.get(name, (name,)):
            target = f"{prefix}{piece}.weight"
            count = tensors[target].shape[0]
            tensors[target], matrix = np.ascontiguousarray(matrix[:count]), matrix[count:]
    return tensors, size / weights, peak
