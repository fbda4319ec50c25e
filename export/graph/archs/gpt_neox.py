"""GPT-NeoX and Pythia: LayerNorm, fused query-key-value by head, partial rotary positions, parallel residuals."""

from __future__ import annotations

from typing import Any

from export.graph.archs._config import activation, epsilon, flag, positive, rotated_heads
from export.graph.archs._rope import exported_context, rope
from export.graph.spec import BlockNames, ModelSpec

BLOCK = BlockNames(
    attention_norm="input_layernorm",
    fused_qkv="attention.query_key_value",
    attention_output="attention.dense",
    mlp_norm="post_attention_layernorm",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    head_dim = rotated_heads(config, hidden, heads)
    return ModelSpec(
        model_type="gpt_neox",
        hidden_size=hidden,
        layers=positive(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        feed_forward=positive(config, "intermediate_size"),
        vocab_size=positive(config, "vocab_size"),
        context_length=exported_context(config),
        norm="layer",
        norm_epsilon=epsilon(config, "layer_norm_eps"),
        activation=activation(config, "hidden_act"),
        block_prefix="gpt_neox.layers.{layer}.",
        block=BLOCK,
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        tied_head=flag(config, "tie_word_embeddings"),
        rope=rope(config, head_dim, partial=True),
        parallel_residual=flag(config, "use_parallel_residual"),
        fused_qkv_by_head=True,
    )
