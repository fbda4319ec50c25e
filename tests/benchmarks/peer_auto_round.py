"""auto-round's dequantized weights, written by its own tool in an environment of its own; called by peers.py.

python peer_auto_round.py MODEL TEXT BITS GROUP OUT.safetensors

Calibrates on the first half of TEXT: 128 sequences of 256 tokens, 200 steps, symmetric. Prints the stored bits per
weight of the blocks' matrices: codes, and a float16 scale for each group. Embedding and head stay float32.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from auto_round import AutoRound
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, text, bits, group, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    with open(text, encoding="utf-8") as file:
        content = file.read()
    ids = np.array(tokenizer(content[: len(content) // 2])["input_ids"])
    starts = np.random.default_rng(0).integers(0, len(ids) - 256, 128)
    data = [{"input_ids": torch.tensor(ids[s : s + 256])[None]} for s in starts]
    rounding = AutoRound(
        model, tokenizer, bits=bits, group_size=group, sym=True, iters=200, seqlen=256, nsamples=128, batch_size=8,
        dataset=data, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    done, layers = rounding.quantize()
    tensors = {name: value.float().contiguous().clone() for name, value in done.state_dict().items()}
    wanted = dict(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).named_parameters())
    save_file({name: tensors[name] for name in wanted}, out)
    size = weights = 0
    for name, value in wanted.items():
        if value.ndim == 2 and "layers" in name:
            assert layers[name.removesuffix(".weight")]["bits"] == bits
            size += value.numel() * bits + value.shape[0] * -(-value.shape[1] // group) * 16
            weights += value.numel()
    print(size / weights)


if __name__ == "__main__":
    main()
