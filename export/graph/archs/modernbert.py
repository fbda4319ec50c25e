"""ModernBERT (encoder): norms before each part, none before the first attention, gated GELU, near and far layers."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import activation, check_dropout, epsilon, flag, positive, rotated_heads, windows
from export.graph.archs._rope import exported_context, of_layer_type, rope
from export.graph.spec import BlockNames, ModelSpec, ScoreHead

ENCODER = True
BLOCK = BlockNames(
    attention_norm="attn_norm",
    fused_qkv="attn.Wqkv",
    attention_output="attn.Wo",
    mlp_norm="mlp_norm",
    fused_gate_up="mlp.Wi",
    down="mlp.Wo",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    check_dropout(config, "embedding_dropout", "mlp_dropout")
    if config["attention_dropout"] > 0:
        check_dropout(config, "attention_dropout")
    layers, head_dim = positive(config, "num_hidden_layers"), rotated_heads(config, hidden, heads)
    far, near = (of_layer_type(config, f"{kind}_attention") for kind in ("full", "sliding"))
    width = config["local_attention"]  # of both sides together; a token sees as far as half of it
    if isinstance(width, bool) or not isinstance(width, int) or not 0 <= width < 2**24:
        raise InputError(f"config.json: local_attention must be a whole number, not {width!r}")
    return ModelSpec(
        model_type="modernbert",
        causal=False,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        feed_forward=positive(config, "intermediate_size"),
        vocab_size=positive(config, "vocab_size"),
        context_length=min(exported_context(far), exported_context(near)),
        norm="layer" if flag(config, "norm_bias") else "layer_without_bias",
        norm_epsilon=epsilon(config, "norm_eps"),
        activation=activation(config, "hidden_activation"),
        block_prefix="layers.{layer}.",
        block=BLOCK,
        embedding="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        final_norm="final_norm",
        rope=rope(far, head_dim),
        local_rope=rope(near, head_dim),
        sliding_window=windows({**config, "sliding_window": width // 2 + 1}, layers),
        layers_without_attention_norm=frozenset({0}),
    )


def score_head(config: dict[str, Any]) -> ScoreHead:
    chosen, bias = activation(config, "classifier_activation"), flag(config, "classifier_bias")
    check_dropout(config, "classifier_dropout")
    pooling = config["classifier_pooling"]
    if pooling not in ("cls", "mean"):
        raise InputError(f"config.json: classifier_pooling {pooling!r} is not supported; cls and mean are")
    return ScoreHead("model.", "head.dense", "classifier", chosen, "head.norm", pooling, bias)
