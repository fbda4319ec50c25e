"""Gemma 3n (text): Gemma 4's embeddings for each layer and shared caches, AltUp, LAuReL and gates that are cut off."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag, optional_number, positive, windows
from export.graph.archs._layers import earlier_caches, whole_number
from export.graph.archs._rope import exported_context, of_layer_type, rope
from export.graph.archs.gemma4_text import per_layer_embedding, shaped_block, without_cache
from export.graph.parts import AltUp, Laurel
from export.graph.spec import BlockNames, ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    positive(config, "hidden_size_per_layer_input")  # Gemma 4 does without
    widths, cuts = _of_layers(config, "intermediate_size"), _of_layers(config, "activation_sparsity_pattern")
    everywhere = of_layer_type(config, "full_attention") if _has(config, "full_attention") else None
    near = of_layer_type(config, "sliding_attention") if _has(config, "sliding_attention") else None
    first = everywhere or near
    if first is None:
        raise InputError("config.json: layer_types must have layers of full_attention or sliding_attention")
    base = llama.spec({**first, "intermediate_size": widths[0]}, hidden_act="hidden_activation")
    base = replace(
        base,
        norm_each_head=True,
        embedding_scale=base.hidden_size**0.5,
        attention_scale=1.0,
        logit_softcap=optional_number(config, "final_logit_softcapping"),
        sliding_window=windows(config, base.layers),
        per_layer=per_layer_embedding(config),
        altup=_altup(config),
    )
    assert base.per_layer is not None
    if near is not None:
        context = min(base.context_length, exported_context(near))
        base = replace(base, context_length=context, local_rope=rope(near, base.head_dim))
    caches = earlier_caches(config, whole_number(config, "num_kv_shared_layers"))
    rank = positive(config, "laurel_rank")
    laurel = Laurel("laurel.linear_left", "laurel.linear_right", "laurel.post_laurel_norm", rank)
    block = replace(shaped_block(base.block, base.per_layer), factor=None, laurel=laurel)
    kinds = tuple(
        _kind(block, bool(caches) and caches[n] != n, positive({"intermediate_size": width}, "intermediate_size"), cut)
        for n, (width, cut) in enumerate(zip(widths, cuts))
    )
    return replace(base, block=kinds[0], block_kinds=kinds, cache_of_layer=caches)


def _has(config: dict[str, Any], kind: str) -> bool:
    return kind in config["layer_types"]


def _of_layers(config: dict[str, Any], name: str) -> list[Any]:
    """Field `name`, one value for each layer."""
    values, layers = config[name], positive(config, "num_hidden_layers")
    if not isinstance(values, list) or len(values) != layers:
        raise InputError(f"config.json: {name} must list {layers} layers")
    return values


def _kind(block: BlockNames, shares: bool, width: int, sparsity: Any) -> BlockNames:
    """sparsity: the share of a token's gates that are cut off if they are normally distributed; 0 or less: none."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not sparsity < 1:
        raise InputError(f"config.json: activation_sparsity_pattern must have numbers below 1, not {sparsity!r}")
    cut = NormalDist().inv_cdf(sparsity) if sparsity > 0 else None
    own = replace(block, feed_forward=width, gate_cut=cut)
    return without_cache(own) if shares else own


def _altup(config: dict[str, Any]) -> AltUp:
    streams, active = positive(config, "altup_num_inputs"), whole_number(config, "altup_active_idx")
    if active >= streams:
        raise InputError(f"config.json: altup_active_idx is {active}, of {streams} streams")
    others = range(streams - 1)
    return AltUp(
        streams=streams,
        active=active,
        projections=tuple(f"model.altup_projections.{number}" for number in others),
        unembeddings=tuple(f"model.altup_unembed_projections.{number}" for number in others),
        router="altup.modality_router",
        router_norm="altup.router_norm",
        prediction="altup.prediction_coefs",
        correction="altup.correction_coefs",
        scale="altup.correct_output_scale" if flag(config, "altup_correct_scale") else None,
    )
