"""auto-round's dequantized weights, written by its own tool in an environment of its own; called by peers.

python peer_auto_round.py MODEL TEXT PART LENGTH BITS GROUP OUT.safetensors

Calibrates on the first PART (0.5: half) of TEXT: 128 sequences of LENGTH tokens, 200 steps, symmetric. Prints the
stored bits of a weight of the blocks' matrices and the bytes of all of them: codes, and a float16 scale for each group.
Embedding and head stay float32.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from auto_round import AutoRound
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, text, part, length = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    bits, group, out = int(sys.argv[5]), int(sys.argv[6]), sys.argv[7]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    with open(text, encoding="utf-8") as file:
        content = file.read()
    ids = np.array(tokenizer(content[: int(len(content) * part)])["input_ids"])
    starts = np.random.default_rng(0).integers(0, len(ids) - length, 128)
    data = [{"input_ids": torch.tensor(ids[s : s + length])[None]} for s in starts]
    rounding = AutoRound(
        model, tokenizer, bits=bits, group_size=group, sym=True, iters=200, seqlen=length, nsamples=128, batch_size=8,
        dataset=data, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    done, layers = rounding.quantize()
    tensors = {name: value.float().contiguous().clone() for name, value in done.state_dict().items()}
    wanted = dict(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).named_parameters())
    save_file({name: tensors[name] for name in wanted}, out)
    size = weights = 0
    for name, value in wanted.items():
        if value.ndim == 2 and "layers" in name:
            if (given := layers[name.removesuffix(".weight")]["bits"]) != bits:
                raise SystemExit(f"{name} of {value.shape[1]} columns is left at {given} bits")
            size += value.numel() * bits + value.shape[0] * -(-value.shape[1] // group) * 16
            weights += value.numel()
    print(json.dumps({"bits": size / weights, "bytes": size // 8}))


if __name__ == "__main__":
    main()
