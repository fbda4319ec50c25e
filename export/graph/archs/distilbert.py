"""DistilBERT (encoder): BERT without segments, under other names."""

from __future__ import annotations

from typing import Any

from export.graph.archs._config import activation, check_chunks, positive, whole_heads
from export.graph.spec import BlockNames, ModelSpec, ScoreHead

ENCODER = True
BLOCK = BlockNames(
    attention_norm=None,
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_sum_norm="sa_layer_norm",
    mlp_norm=None,
    up="ffn.lin1",
    down="ffn.lin2",
    mlp_sum_norm="output_layer_norm",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    check_chunks(config)
    hidden, heads = positive(config, "dim"), positive(config, "n_heads")
    return ModelSpec(
        model_type="distilbert",
        causal=False,
        hidden_size=hidden,
        layers=positive(config, "n_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=whole_heads(hidden, heads),
        feed_forward=positive(config, "hidden_dim"),
        vocab_size=positive(config, "vocab_size"),
        context_length=positive(config, "max_position_embeddings"),
        norm="layer",
        norm_epsilon=1e-12,
        activation=activation(config, "activation"),
        block_prefix="transformer.layer.{layer}.",
        block=BLOCK,
        embedding="embeddings.word_embeddings",
        position_embedding="embeddings.position_embeddings",
        embedding_norm="embeddings.LayerNorm",
    )


def score_head(config: dict[str, Any]) -> ScoreHead:
    return ScoreHead("distilbert.", "pre_classifier", "classifier", "relu")
