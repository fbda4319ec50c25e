"""llama.cpp's quantizations of a Llama model of ../shared, measured by llama.cpp's own tools.

    python -m tests.benchmarks.peers_llamacpp --tools FOLDER [--model scribe-6M] [--types Q4_0 Q2_K ...]

FOLDER holds llama-quantize, llama-imatrix and llama-perplexity (build them from the llama-cpp-python source package:
`cmake -B build && cmake --build build --target llama-quantize llama-imatrix llama-perplexity`); `pip install gguf`.
The importance matrix comes from the first half of the text, perplexity and KL from the second, 256-token contexts, of
which llama-perplexity scores the second half: compare ratios to float32 and KL, not perplexities, with our table.
The embedding stays at Q8_0, like ours at 8 bits; bits are counted over the linear layers of the blocks.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

SHARED = Path("../shared")
TEXTS = {"stories260K": "tinystories_val.txt", "scribe-6M": "scribe_valid.txt"}
TYPES = ("Q4_0", "Q4_K_M", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q3_K_S", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S",
         "IQ2_XS", "IQ2_XXS")  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix from half-split to llama.cpp's interleaved rotary layout."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(source: Path, path: Path) -> None:
    """A float32 GGUF of a Hugging Face Llama folder with a byte-level BPE tokenizer."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())["model"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    special = {config["bos_token_id"], config["eos_token_id"]}
    kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    for name, tensor in load_file(source / "model.safetensors").items():
        value = tensor.astype(np.float32)
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        else:
            layer, module = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name).groups()  # type: ignore[union-attr]
            target = f"blk.{layer}.{NAMES[module]}.weight"
            if module in ("self_attn.q_proj", "self_attn.k_proj"):
                value = interleave(value, heads if "q_proj" in module else kv_heads)
        writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def block_bits(path: Path) -> float:
    """Stored bits per weight over the matrices of the blocks."""
    tensors = [t for t in gguf.GGUFReader(str(path)).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"llama-perplexity printed no {pattern!r}:\n{text[-2000:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--model", choices=list(TEXTS), default="scribe-6M")
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--write", type=Path, default=None, help="write the rows as JSON")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())

    def tool(name: str, *arguments: object) -> str:
        result = subprocess.run([args.tools / name, *map(str, arguments)], capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{name} failed:\n{result.stderr[-2000:]}")
        return result.stdout + result.stderr

    text = (SHARED / "text" / TEXTS[args.model]).read_text(encoding="utf-8")
    half = int(len(text) * 0.5)
    (work / "calibration.txt").write_text(text[:half])
    (work / "evaluation.txt").write_text(text[half:])
    base, imatrix, logits = work / "f32.gguf", work / "imatrix.gguf", work / "base.kld"
    write_gguf(SHARED / "models" / args.model, base)
    tool("llama-imatrix", "-m", base, "-f", work / "calibration.txt", "-o", imatrix, "-c", 256)
    run = ["-f", work / "evaluation.txt", "-c", 256, "--kl-divergence-base", logits]
    reference = number(r"Final estimate: PPL = ([\d.]+)", tool("llama-perplexity", "-m", base, *run))
    print(f"{args.model}: float32 perplexity {reference:.3f} by llama-perplexity")
    rows = []
    for kind in args.types:
        path = work / f"{kind}.gguf"
        try:
            tool("llama-quantize", "--imatrix", imatrix, "--token-embedding-type", "q8_0", base, path, kind)
        except SystemExit as error:
            print(f"{kind}: {str(error).splitlines()[-1]}")
            continue
        out = tool("llama-perplexity", "-m", path, *run, "--kl-divergence")
        row = {
            "model": args.model,
            "type": kind,
            "effective_bits": block_bits(path),
            "ratio": number(r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*([\d.]+)", out),
            "kl": number(r"Mean\s+KLD:\s*([-\d.]+)", out),
            "top1_agreement": number(r"Same top p:\s*([\d.]+)", out) / 100,
        }
        rows.append(row)
        print(" | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    if args.write:
        args.write.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
