"""Mamba-2: blocks of a norm and a selective state space, without attention and without a feed-forward part."""

from __future__ import annotations

from typing import Any

from export.graph.archs._config import activation, epsilon, flag, number, positive, refuse
from export.graph.archs._state_space import checked, limits
from export.graph.parts import StateSpace
from export.graph.spec import BlockNames, ModelSpec

CONTEXT = 1 << 20  # nothing counts positions: any text may be that long


def spec(config: dict[str, Any]) -> ModelSpec:
    for name in ("time_step_min", "time_step_max"):  # of no matter to the values, but transformers takes logarithms
        number(config, name)
    positive(config, "chunk_size")
    refuse(config, {"rescale_prenorm_residual": True})  # transformers 5.23 divides the weights that it has read
    heads, head_dim, groups = positive(config, "num_heads"), positive(config, "head_dim"), positive(config, "n_groups")
    space = StateSpace(
        input="mixer.in_proj",
        output="mixer.out_proj",
        kernel="mixer.conv1d",
        rate="mixer.A_log",
        bias="mixer.dt_bias",
        skip="mixer.D",
        norm="mixer.norm",
        activation=activation(config, "hidden_act"),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        state_size=positive(config, "state_size"),
        width=positive(config, "conv_kernel"),
        norm_groups=groups,
        **limits(config),  # type: ignore[arg-type]
    )
    return ModelSpec(
        model_type=config["model_type"],
        hidden_size=positive(config, "hidden_size"),
        layers=positive(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        feed_forward=0,
        vocab_size=positive(config, "vocab_size"),
        context_length=CONTEXT,
        norm="rms",
        norm_epsilon=epsilon(config, "layer_norm_epsilon"),
        activation=space.activation,
        block_prefix="backbone.layers.{layer}.",
        block=BlockNames(
            attention_norm="norm", attention_output=None, mlp_norm=None, down=None, state_space=checked(space)
        ),
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        head="lm_head",
        tied_head=flag(config, "tie_word_embeddings"),
    )
