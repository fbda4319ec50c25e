"""Models that are for something else than generating text: what config.json says of that, and decoders as encoders.

A decoder's config.json is the same for both, so `export_task` is written into it by what reads the source
(toolchain/source/tasks.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.spec import ModelSpec, ScoreHead

TASK, EMBEDDING, SCORING = "export_task", "embedding", "scoring"


def is_embedding(config: dict[str, Any]) -> bool:
    """Whether the model is there for the vectors of texts, whatever its family is for."""
    return config.get(TASK) == EMBEDDING


def is_scoring(config: dict[str, Any]) -> bool:
    """Whether the model is there for the scores of pairs of texts."""
    return config.get(TASK) == SCORING


def with_scores(spec: ModelSpec, head: ScoreHead) -> ModelSpec:
    """An encoder with the head behind it, under the names that it has then."""

    def named(name: str | None) -> str | None:
        return head.inside + name if name else None

    return replace(
        spec,
        scores=head,
        block_prefix=head.inside + spec.block_prefix,
        embedding=head.inside + spec.embedding,
        position_embedding=named(spec.position_embedding),
        token_types=named(spec.token_types),
        embedding_norm=named(spec.embedding_norm),
        embedding_projection=named(spec.embedding_projection),
        final_norm=named(spec.final_norm),
    )


def as_encoder(spec: ModelSpec, config: dict[str, Any]) -> ModelSpec:
    """A decoder without its head, under the names that the base model has alone.

    Raises InputError for what the encoders' graph has no form for.
    """
    plain = spec.rope is not None and not spec.position_embedding and spec.query_growth is None
    plain = plain and not any(names.keeps_state or names.experts is not None for names in spec.kinds())
    if not plain or spec.attention_softcap is not None:
        raise InputError(f"config.json: {spec.model_type} as an embedding model is not supported")
    inside = f"{spec.embedding.partition('.')[0]}."
    assert spec.final_norm
    return replace(
        spec,
        causal=False,
        looks_back_only=config.get("use_bidirectional_attention") is not True,
        block_prefix=spec.block_prefix.removeprefix(inside),
        embedding=spec.embedding.removeprefix(inside),
        final_norm=spec.final_norm.removeprefix(inside),
        head=None,
        tied_head=False,
        head_bias=False,
    )
