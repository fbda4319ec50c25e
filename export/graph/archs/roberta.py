"""RoBERTa (encoder): BERT whose positions start behind the padding row and count tokens that are not padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import bert
from export.graph.spec import ModelSpec, ScoreHead

ENCODER = True


def spec(config: dict[str, Any]) -> ModelSpec:
    base = bert.spec(config)
    padding = config["pad_token_id"]
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < base.context_length - 1:
        raise InputError(f"config.json: pad_token_id {padding!r} leaves no positions")
    return replace(
        base,
        position_offset=padding + 1,
        context_length=base.context_length - padding - 1,
        positions_skip_padding=True,
    )


def score_head(config: dict[str, Any]) -> ScoreHead:
    return ScoreHead("roberta.", "classifier.dense", "classifier.out_proj")
