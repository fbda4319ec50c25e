"""GPT-2: LayerNorm with biases, learned positions, fused query-key-value, plain GELU feed-forward, Conv1D weights."""

from __future__ import annotations

from typing import Any

from export.graph.archs._config import activation, epsilon, flag, positive, refuse, whole_heads
from export.graph.spec import BlockNames, ModelSpec

BLOCK = BlockNames(
    attention_norm="ln_1",
    fused_qkv="attn.c_attn",
    attention_output="attn.c_proj",
    mlp_norm="ln_2",
    up="mlp.c_fc",
    down="mlp.c_proj",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True})
    hidden, heads = positive(config, "n_embd"), positive(config, "n_head")
    return ModelSpec(
        model_type="gpt2",
        hidden_size=hidden,
        layers=positive(config, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=whole_heads(hidden, heads),
        feed_forward=4 * hidden if config["n_inner"] is None else positive(config, "n_inner"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, "n_positions"),
        norm="layer",
        norm_epsilon=epsilon(config, "layer_norm_epsilon"),
        activation=activation(config, "activation_function"),
        block_prefix="transformer.h.{layer}.",
        block=BLOCK,
        embedding="transformer.wte",
        position_embedding="transformer.wpe",
        final_norm="transformer.ln_f",
        head="lm_head",
        tied_head=flag(config, "tie_word_embeddings"),
        attention_scale=None if flag(config, "scale_attn_weights") else 1.0,
        linear_is_transposed=True,
    )
