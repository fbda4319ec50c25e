"""BERT (encoder): LayerNorm after each residual sum, learned positions and segments, plain GELU feed-forward."""

from __future__ import annotations

from typing import Any

from export.graph.archs._config import activation, check_chunks, epsilon, positive, refuse, whole_heads
from export.graph.spec import BlockNames, ModelSpec, ScoreHead

ENCODER = True
BLOCK = BlockNames(
    attention_norm=None,
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_sum_norm="attention.output.LayerNorm",
    mlp_norm=None,
    up="intermediate.dense",
    down="output.dense",
    mlp_sum_norm="output.LayerNorm",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    """ModelSpec of a BERT config; roberta and albert start from it."""
    refuse(config, {"is_decoder": True, "add_cross_attention": True, "position_embedding_type": "relative_key"})
    refuse(config, {"position_embedding_type": "relative_key_query"})
    check_chunks(config)
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    return ModelSpec(
        model_type=config["model_type"],
        causal=False,
        hidden_size=hidden,
        layers=positive(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=whole_heads(hidden, heads),
        feed_forward=positive(config, "intermediate_size"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, "max_position_embeddings"),
        norm="layer",
        norm_epsilon=epsilon(config, "layer_norm_eps"),
        activation=activation(config, "hidden_act"),
        block_prefix="encoder.layer.{layer}.",
        block=BLOCK,
        embedding="embeddings.word_embeddings",
        position_embedding="embeddings.position_embeddings",
        token_types="embeddings.token_type_embeddings",
        token_type_count=positive(config, "type_vocab_size"),
        embedding_norm="embeddings.LayerNorm",
    )


def score_head(config: dict[str, Any]) -> ScoreHead:
    return ScoreHead("bert.", "bert.pooler.dense", "classifier")
