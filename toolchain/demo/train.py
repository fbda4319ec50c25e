"""Train the bundled demo model: a 1.9-million-parameter Llama in float16, with its own byte-level BPE tokenizer.

    python -m toolchain.demo.train -o FOLDER [--text FOLDER_OF_TEXTS] [--minutes 60]

Without --text it learns from the standard library's documentation strings alone; with --text, from every .txt, .md
and .txt.gz file below that folder, the documentation strings mixed in (one part in eight, so that the held-out
documentation strings stay a fair evaluation text). Matrices are trained with Muon, the rest with AdamW.
Needs the `quantize` extra (torch, transformers).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from toolchain.calibrate.corpus import standard_library_text

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TrainSettings:
    """Shape and schedule of the demo model; sized so that weights and tokenizer stay under 4 MB."""

    vocabulary: int = 1536
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 512  # positions the model declares and is trained on
    batch: int = 16  # sequences a step
    minutes: float = 60.0  # the schedule follows the clock: the learning rate ends at zero when the time is up
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    seed: int = 0


def read_texts(folder: Path | None) -> list[str]:
    """Training documents: the folder's texts and the documentation strings, the latter repeated to about 1/8."""
    library = standard_library_text("train")
    if folder is None:
        return [library]
    texts = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.endswith(".txt.gz"):
            texts.append(gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore"))
        elif path.suffix in (".txt", ".md"):
            texts.append(path.read_text(encoding="utf-8", errors="ignore"))
    if not texts:
        raise SystemExit(f"{folder}: no .txt, .md or .txt.gz file below this folder")
    repeats = max(1, round(sum(map(len, texts)) / 7 / len(library)))
    return texts + [library] * repeats


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE over samples of every text, so that no single text dominates the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text[:4_000_000] for text in dict.fromkeys(texts)), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one uint16 token stream, in pieces of about 4,000 characters cut at line ends."""
    pieces: list[str] = []
    for text in texts:
        lines, size = [], 0
        for line in text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size > 4000:
                pieces.append("".join(lines))
                lines, size = [], 0
        pieces.append("".join(lines))
    ids = [np.asarray(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch(pieces)]
    order = np.random.default_rng(0).permutation(len(ids))
    return np.concatenate([ids[i] for i in order])


def learning_rate_factor(progress: float) -> float:
    """Short warm-up, constant, then linear decay to zero over the last 40 % of the time."""
    return min(1.0, progress / 0.01) * min(1.0, (1.0 - progress) / 0.4)


def train(model: LlamaForCausalLM, stream: np.ndarray, s: TrainSettings) -> float:
    """Train until the time is up; returns the mean loss (nats per token) of the last fifty steps."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=s.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=s.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base_rates = [s.muon_lr, s.adam_lr]
    rng = np.random.default_rng(s.seed)
    offsets = np.arange(s.context + 1)
    start = time.monotonic()
    losses: list[float] = []
    while (progress := (time.monotonic() - start) / (60 * s.minutes)) < 1.0:
        for optimizer, rate in zip(optimizers, base_rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(progress)
        at = rng.integers(0, len(stream) - s.context - 1, size=s.batch)
        window = torch.from_numpy(stream[at[:, None] + offsets].astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=window[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            tokens = len(losses) * s.batch * s.context
            rate = tokens / (time.monotonic() - start)
            print(
                f"step {len(losses)}  loss {np.mean(losses[-50:]):.3f}  {progress:.0%}  {rate:.0f} tokens/s", flush=True
            )
    return float(np.mean(losses[-50:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=TrainSettings.minutes)
    args = parser.parse_args()
    s = TrainSettings(minutes=args.minutes)
    torch.manual_seed(s.seed)
    texts = read_texts(args.text)
    tokenizer = train_tokenizer(texts, s.vocabulary)
    stream = encode(tokenizer, texts)
    print(f"{len(stream):,} tokens of training text", flush=True)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=s.hidden,
        intermediate_size=s.feed_forward,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        max_position_embeddings=s.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * s.layers))
    loss = train(model, stream, s)
    args.output.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.output)
    tokenizer.save(str(args.output / "tokenizer.json"), pretty=False)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": s.context,
        "clean_up_tokenization_spaces": False,
    }
    (args.output / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    print(f"final training loss {loss:.4f} nats/token; saved in {args.output}")


if __name__ == "__main__":
    main()
