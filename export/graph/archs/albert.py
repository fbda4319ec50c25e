"""ALBERT (encoder): BERT whose layers share stored blocks, with narrow embeddings and a projection behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import bert
from export.graph.archs._config import positive
from export.graph.spec import BlockNames, ModelSpec, ScoreHead

ENCODER = True
BLOCK = BlockNames(
    attention_norm=None,
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_output="attention.dense",
    attention_sum_norm="attention.LayerNorm",
    mlp_norm=None,
    up="ffn",
    down="ffn_output",
    mlp_sum_norm="full_layer_layer_norm",
)


def spec(config: dict[str, Any]) -> ModelSpec:
    base = bert.spec(config)
    groups = positive(config, "num_hidden_groups")
    if positive(config, "inner_group_num") != 1 or groups > base.layers:
        raise InputError("config.json: inner_group_num must be 1, and num_hidden_groups at most num_hidden_layers")
    return replace(
        base,
        block_prefix="encoder.albert_layer_groups.{layer}.albert_layers.0.",
        block=BLOCK,
        block_of_layer=tuple(int(i / (base.layers / groups)) for i in range(base.layers)),
        embedding_size=positive(config, "embedding_size"),
        embedding_projection="encoder.embedding_hidden_mapping_in",
    )


def score_head(config: dict[str, Any]) -> ScoreHead:
    return ScoreHead("albert.", "albert.pooler", "classifier")
