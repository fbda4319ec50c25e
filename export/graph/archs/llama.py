"""Llama 1 to 3 and everything that calls itself `llama`: RMSNorm, rotary positions, grouped queries, gated SiLU."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import activation, epsilon, flag, positive
from export.graph.archs._rope import exported_context, rope
from export.graph.spec import BlockNames, ModelSpec

BLOCK = BlockNames(
    attention_norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)


def spec(
    config: dict[str, Any], norm_epsilon: str = "rms_norm_eps", hidden_act: str = "hidden_act", partial: bool = False
) -> ModelSpec:
    """ModelSpec of a Llama config; its relatives start from it, with other names of two fields.

    partial: the family can rotate a part of each head (export/graph/archs/_rope.py).
    """
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    kv_heads = positive(config, "num_key_value_heads")
    if heads % kv_heads:
        raise InputError(
            f"config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
        )
    head_dim = positive(config, "head_dim") if "head_dim" in config else hidden // heads
    return ModelSpec(
        model_type=config["model_type"],
        hidden_size=hidden,
        layers=positive(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=positive(config, "intermediate_size"),
        vocab_size=positive(config, "vocab_size"),
        context_length=exported_context(config),
        norm="rms",
        norm_epsilon=epsilon(config, norm_epsilon),
        activation=activation(config, hidden_act),
        block_prefix="model.layers.{layer}.",
        block=BLOCK,
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        tied_head=flag(config, "tie_word_embeddings"),
        rope=rope(config, head_dim, partial=partial),
    )
