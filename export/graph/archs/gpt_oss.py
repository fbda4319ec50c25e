"""gpt-oss: attention sinks, biases everywhere, and experts behind a clamped gate, which checkpoints hold together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.archs import llama
from export.graph.archs._config import flag, number, windows
from export.graph.archs._experts import with_experts
from export.graph.parts import ClampedGate
from export.graph.spec import ModelSpec


def spec(config: dict[str, Any]) -> ModelSpec:
    flag(config, "attention_bias")
    base = llama.spec({**config, "hidden_act": "silu"})  # the class reads no hidden_act
    base = replace(
        base,
        block=replace(base.block, sinks="self_attn.sinks"),
        sliding_window=windows(config, base.layers),
        clamped_gate=ClampedGate(number(config, "swiglu_alpha"), number(config, "swiglu_limit")),
    )
    found = with_experts(base, config, "num_local_experts", normalised=False)
    assert found.block.experts is not None
    experts = replace(found.block.experts, router="mlp.router", of_picked=True, together=True)
    return replace(found, block=replace(found.block, experts=experts))
