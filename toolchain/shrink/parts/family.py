"""What of a family can be left out, and what its config.json is for the rest: refusals before any work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.graph.spec import ModelSpec
from toolchain.shrink.parts.cut import Sizes
from toolchain.source.checkpoint import SourceModel
from toolchain.source.config import resolved_config

_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")  # lists with an entry for every layer


@dataclass(frozen=True)
class Freedom:
    """What may be cut of a model; where it may not, why."""

    source: SourceModel
    spec: ModelSpec

    def __post_init__(self) -> None:
        """Raises InputError for a model of which nothing can be cut."""
        if why := _foreign(self.spec):
            raise InputError(f"{self.source.where}: {self.spec.model_type} models with {why} cannot be cut")
        missing = [name for name in _SIZES if name not in self.source.config]
        if missing:
            kind = self.spec.model_type
            raise InputError(f"{self.source.where}: config.json of {kind} states no {missing[0]}: it cannot be cut")

    @cached_property
    def heads(self) -> tuple[Sizes, ...]:
        """Sizes with every number of heads that transformers takes, the model's own among them, fewest weights first.

        Layers and feed-forward width are the model's.
        """
        own, spec = Sizes.of(self.spec), self.spec
        if why := _whole_heads(spec):
            self._note(f"heads are kept: {why}")
            return (own,)
        found = [own]
        for groups in range(1, own.kv_heads + 1):
            for each in range(1, own.group + 1):
                sizes = Sizes(own.layers, groups * each, groups, own.feed_forward)
                if sizes != own and self._is_legal(sizes):
                    found.append(sizes)
        return tuple(sorted(found, key=lambda sizes: (sizes.attention(spec), sizes.kv_heads)))

    @property
    def channels(self) -> bool:
        """Whether channels of the feed-forward part may go."""
        return self.spec.block.gate_cut is None

    def config(self, sizes: Sizes, layers: tuple[int, ...]) -> dict[str, Any]:
        """config.json of the cut model, resolved. Raises InputError where transformers refuses it."""
        config = self.source.config
        known = {name: config[name] for name in _BY_LAYER if isinstance(config.get(name), list)}
        by_layer = {name: [value[layer] for layer in layers] for name, value in known.items()}
        own = dict(zip(_SIZES, (sizes.layers, sizes.heads, sizes.kv_heads, sizes.feed_forward)))
        changed = {name: value for name, value in config.items() if name != "quantization_config"} | own | by_layer
        made = resolved_config(changed, self.source.folder / "config.json")
        self._check(model_spec(made), sizes, layers)
        return made

    def _check(self, found: ModelSpec, sizes: Sizes, layers: tuple[int, ...]) -> None:
        """Raises InputError where the layers that are left would not compute what they did."""
        spec = self.spec
        near = spec.sliding_window or (None,) * spec.layers
        unturned = frozenset(new for new, old in enumerate(layers) if old in spec.layers_without_rope)
        same = (
            Sizes.of(found) == sizes
            and found.head_dim == spec.head_dim
            and found.attention_scale == spec.attention_scale
            and (found.sliding_window or (None,) * len(layers)) == tuple(near[layer] for layer in layers)
            and found.layers_without_rope == unturned
            and found.rope == spec.rope
            and found.residual_scale == spec.residual_scale
        )
        if not same:
            raise InputError(f"{self.source.where}: config.json of {spec.model_type} cannot say what would be left")

    def _is_legal(self, sizes: Sizes) -> bool:
        try:
            self.config(sizes, tuple(range(self.spec.layers)))
        except InputError:
            return False
        return True

    def _note(self, text: str) -> None:
        self.notes.append(text)

    @cached_property
    def notes(self) -> list[str]:
        """What a user should know of what cannot be cut."""
        return []


def _foreign(spec: ModelSpec) -> str:
    """What a model has that nothing here knows how to cut; "" for a plain decoder."""
    names = spec.block
    reasons = {
        "no next token to predict (encoders)": not spec.causal,
        "experts": spec.has_experts,
        "states in place of attention": any(kind.keeps_state for kind in spec.kinds()),
        "blocks that differ from each other": bool(spec.block_kinds or spec.block_of_layer),
        "layers that share keys and values": bool(spec.cache_of_layer),
        "embeddings for each layer": spec.per_layer is not None,
        "AltUp": spec.altup is not None,
        "weights stored [in, out]": spec.linear_is_transposed,
        "rows of query, key and value that alternate": spec.fused_qkv_by_head,
        "no attention or no feed-forward part": not names.attends or names.down is None,
    }
    return next((why for why, true in reasons.items() if true), "")


def _whole_heads(spec: ModelSpec) -> str:
    """Why heads may not go; "" where they may."""
    names = spec.block
    reasons = {
        "norms run over all of them": names.query_norm is not None and not spec.norm_each_head,
        "the query layer holds gates, too": spec.query_gate,
        "they have sinks": names.sinks is not None,
        "keys are values": names.values_are_keys,
    }
    return next((why for why, true in reasons.items() if true), "")
