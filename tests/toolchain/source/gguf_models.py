"""Tiny random GGUF files of the families that transformers can rebuild, made with the package gguf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
# architecture: model_type, what the config says beside SIZE
FAMILIES = {
    "llama": ("llama", {"head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 6}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 6}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "starcoder2": ("starcoder2", {}),
    # transformers 5.23 takes an expert's width from no key of the file: it is its class's default
    "qwen3moe": (
        "qwen3_moe",
        {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "head_dim": 16,
        },
    ),
    "lfm2": ("lfm2", {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
}
QUANTIZED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32", "TQ1_0", "TQ2_0", "MXFP4"}  # by the package
Change = Callable[[GGUFWriter], None]


def vocabulary(kind: str) -> dict[str, list]:
    """A small tokenizer: byte-level BPE ("gpt2") or SentencePiece ("llama")."""
    if kind == "gpt2":
        letters = list(bytes_to_unicode().values())
        merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r"]
        tokens = [*letters, *(merge.replace(" ", "") for merge in merges), "<s>", "</s>"]
        return {"tokens": tokens, "merges": merges, "types": [1] * (len(tokens) - 2) + [3, 3]}
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz", "he", "ll", "hell", "hello", "▁w", "or"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    scores = [0.0] * 259 + [float(-i) for i in range(len(pieces))]
    return {"tokens": tokens, "scores": scores, "types": [2, 3, 3] + [6] * 256 + [1] * len(pieces)}


def write_gguf(
    path: Path, architecture: str = "llama", type_of: Callable[[str], str] = lambda name: "F32", kind: str = "gpt2",
    tied: bool = True, parts: int = 1, change: Change = lambda writer: None, **more: object,
) -> Path:  # fmt: skip
    """The model at path, or in parts beside it (the first is returned).

    type_of: the type that a matrix of this name in the file is stored as; change: what to add to the first part.
    """
    words = vocabulary(kind)
    model_type, fields = FAMILIES[architecture]
    fields = {**(SIZE if model_type != "gpt2" else {}), **fields, **more, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(model_type, vocab_size=len(words["tokens"]), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tensors = {
        name: _as_in_file(architecture, name, value, config) for name, value in _named(model, architecture, tied)
    }
    if parts == 1:
        writers = [GGUFWriter(path, architecture)]
    else:
        paths = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{parts:05d}.gguf") for i in range(parts)]
        writers = [GGUFWriter(part, architecture) for part in paths]
        path = paths[0]
        for number, writer in enumerate(writers):
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(tensors))
    _metadata(writers[0], config, words, kind)
    change(writers[0])
    for number, (name, value) in enumerate(tensors.items()):
        plain = value.ndim == 1 or "shortconv.conv" in name
        _add(writers[number * parts // len(tensors)], name, value, "F32" if plain else type_of(name))
    for writer in writers:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _named(model: torch.nn.Module, architecture: str, tied: bool):
    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(arch, 2)
    for name, value in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("gate_up_proj", "down_proj"):
            yield from _experts(name, value)
            continue
        found = names.get_name(module)
        if found is not None and not (tied and found == "output"):
            value = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
            yield f"{found}.{leaf}", value.numpy() + (1 if "norm" in found and leaf == "weight" else 0)


def _experts(name: str, value: torch.Tensor):
    """llama.cpp keeps gate and up apart."""
    made = (torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2).numpy()
    block = f"blk.{name.split('.')[2]}.ffn_"
    if name.endswith("down_proj"):
        yield f"{block}down_exps.weight", made
    else:
        gate, up = np.split(made, 2, axis=1)
        yield f"{block}gate_exps.weight", gate
        yield f"{block}up_exps.weight", up


def _as_in_file(architecture: str, name: str, value: np.ndarray, config) -> np.ndarray:
    """What llama.cpp's converter makes of a tensor."""
    if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
        return value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    if architecture == "gpt2" and name.endswith(
        ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):
        return value.T
    return value[:, 0] if name.endswith("shortconv.conv.weight") else value


def _add(writer: GGUFWriter, name: str, value: np.ndarray, title: str) -> None:
    kind = GGMLQuantizationType[title]
    if title in QUANTIZED:
        data = quantize(np.ascontiguousarray(value, np.float32), kind)
    else:
        data = random_blocks(title, value.shape)
    writer.add_tensor(name, data, raw_dtype=kind)


def random_blocks(title: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of a type that the package cannot make: random ones, whose float16 scales are small wherever they stand."""
    size, length = GGML_QUANT_SIZES[GGMLQuantizationType[title]]
    rng = np.random.default_rng(len(title) + shape[0])
    rows = rng.integers(0, 256, (*shape[:-1], shape[-1] // size, length), dtype=np.uint8)
    rows[..., 1::2] &= 0x3B  # the high byte of whatever float16 stands there: below 1, never infinite
    rows[..., 0::2] &= 0x3B
    return rows.reshape(*shape[:-1], -1)


def _metadata(writer: GGUFWriter, config, words: dict[str, list], kind: str) -> None:
    text = config.get_text_config()
    writer.add_context_length(text.max_position_embeddings)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_embedding_length(text.hidden_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_feed_forward_length(getattr(text, "intermediate_size", 4 * text.hidden_size))
    if hasattr(text, "num_key_value_heads"):
        kinds = getattr(text, "layer_types", None) if text.model_type == "lfm2" else None
        heads = text.num_key_value_heads
        writer.add_head_count_kv([heads * (kind == "full_attention") for kind in kinds] if kinds else heads)
        writer.add_rope_freq_base(10000.0)
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
    if getattr(text, "sliding_window", None):
        writer.add_sliding_window(text.sliding_window)
    if hasattr(text, "conv_L_cache"):
        writer.add_shortconv_l_cache(text.conv_L_cache)
    if hasattr(text, "num_experts_per_tok"):
        writer.add_expert_count(text.num_experts)
        writer.add_expert_used_count(text.num_experts_per_tok)
        writer.add_expert_feed_forward_length(text.moe_intermediate_size)
    rms = hasattr(text, "rms_norm_eps") or hasattr(text, "norm_eps")
    (writer.add_layer_norm_rms_eps if rms else writer.add_layer_norm_eps)(1e-5)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    for name in ("merges", "scores"):
        if name in words:
            (writer.add_token_merges if name == "merges" else writer.add_token_scores)(words[name])
    writer.add_bos_token_id(words["tokens"].index("<s>"))
    writer.add_eos_token_id(words["tokens"].index("</s>"))
    if text.pad_token_id is not None:
        writer.add_pad_token_id(text.pad_token_id)
    writer.add_chat_template(TEMPLATE)
