"""OPT: LayerNorm with biases, learned positions that start at row 2, plain ReLU feed-forward."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import activation, check_dropout, flag, positive, refuse, whole_heads
from export.graph.spec import BlockNames, ModelSpec

BLOCK = BlockNames(
    attention_norm="self_attn_layer_norm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    up="fc1",
    down="fc2",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    unsupported = {"do_layer_norm_before": False, "layer_norm_elementwise_affine": False}
    refuse(config, {**unsupported, "_remove_final_layer_norm": True})
    check_dropout(config, "dropout")
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if positive(config, "word_embed_proj_dim") != hidden:
        raise InputError("config.json: word_embed_proj_dim must be hidden_size for opt")
    return ModelSpec(
        model_type="opt",
        hidden_size=hidden,
        layers=positive(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=whole_heads(hidden, heads),
        feed_forward=positive(config, "ffn_dim"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, "max_position_embeddings"),
        norm="layer",
        norm_epsilon=1e-5,
        activation=activation(config, "activation_function"),
        block_prefix="model.decoder.layers.{layer}.",
        block=BLOCK,
        embedding="model.decoder.embed_tokens",
        position_embedding="model.decoder.embed_positions",
        position_offset=2,
        final_norm="model.decoder.final_layer_norm",
        head="lm_head",
        tied_head=flag(config, "tie_word_embeddings"),
    )
