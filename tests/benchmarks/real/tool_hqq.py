"""hqq's dequantized weights, in an environment with `pip install hqq termcolor safetensors`; called by peers.py.

python tool_hqq.py SOURCE BITS GROUP OUT.safetensors

Writes the blocks' matrices and prints the bits of a weight and the bytes of all of them: codes, and a float16 scale and
zero point for each group.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file


def main() -> None:
    source, bits, group, out = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    tensors = {}
    size = weights = 0
    for name, value in load_file(source / "model.safetensors").items():
        if value.ndim != 2 or "layers" not in name:
            continue
        packed, meta = Quantizer.quantize(
            value.float(), nbits=bits, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32,
            optimize=True,
        )  # fmt: skip
        tensors[name] = Quantizer.dequantize(packed, meta).float().reshape(value.shape).contiguous()
        size += value.numel() * bits + value.numel() // group * 32
        weights += value.numel()
    save_file(tensors, out)
    print(json.dumps({"bits": size / weights, "bytes": size // 8}))


if __name__ == "__main__":
    main()
