"""Blocks whose query and key layers, or gate and up layers, share a factor: config.json's record, checked.

    "athena_low_rank": {"model_type": "llama", "query_key": [96, 0, ...], "gate_up": [160, 192, ...]}

A rank for each layer, 0 where its matrices are whole. W of such a layer is stored as two: NAME.a [rank, columns] and
NAME.b [rows, rank], y = b(a(x)); the second layer of a pair has a .b alone and reads the first one's .a. While the
folder is one of floats its model_type is LOW_RANK, so that transformers, which knows no such layers, refuses it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.parts import SharedFactors
from export.graph.spec import BlockNames, ModelSpec

RECORD = LOW_RANK = "athena_low_rank"
PAIRS = ("query_key", "gate_up")


def base_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a folder of low rank under its family's model_type; any other as it is. Raises InputError."""
    if config.get("model_type") != LOW_RANK:
        return config
    kind = record_of(config).get("model_type")
    if not isinstance(kind, str) or kind == LOW_RANK:
        raise InputError(f"config.json: {RECORD} names no model_type")
    return {**config, "model_type": kind}


def record_of(config: dict[str, Any]) -> dict[str, Any]:
    """The record of a config. Raises InputError where there is none."""
    record = config.get(RECORD)
    if not isinstance(record, dict):
        raise InputError(f"config.json: {RECORD} must be an object")
    return record


def with_low_rank(spec: ModelSpec, config: dict[str, Any]) -> ModelSpec:
    """The model with shared factors where its config has the record. Raises InputError for one that will not do."""
    if config.get(RECORD) is None:
        return spec
    names = spec.block
    plain = names.query and names.key and names.gate and names.up and not spec.query_gate and not spec.has_experts
    if not (spec.causal and plain) or spec.block_kinds or spec.block_of_layer or spec.linear_is_transposed:
        raise InputError(f"config.json: {RECORD} is not supported for {spec.model_type}")
    record = record_of(config)
    most = {"query_key": spec.hidden_size, "gate_up": spec.hidden_size}
    ranks = {pair: _ranks(record.get(pair), pair, spec.layers, most[pair]) for pair in PAIRS}
    kinds = tuple(_block(names, *both) for both in zip(*(ranks[pair] for pair in PAIRS)))
    return replace(spec, block_kinds=kinds)


def _ranks(value: Any, pair: str, layers: int, most: int) -> list[int]:
    known = isinstance(value, list) and len(value) == layers
    if not known or not all(type(rank) is int and 0 <= rank <= most for rank in value):
        raise InputError(f"config.json: {RECORD}.{pair} must be {layers} whole numbers from 0 to {most}")
    return list(value)


def _block(names: BlockNames, query_key: int, gate_up: int) -> BlockNames:
    """A block of these ranks."""
    shared = SharedFactors(
        query_key=f"{names.query}.a" if query_key else None,
        query_key_rank=query_key,
        gate_up=f"{names.gate}.a" if gate_up else None,
        gate_up_rank=gate_up,
    )
    if query_key:
        names = replace(names, query=f"{names.query}.b", key=f"{names.key}.b")
    if gate_up:
        names = replace(names, gate=f"{names.gate}.b", up=f"{names.up}.b")
    return replace(names, shared=shared)
