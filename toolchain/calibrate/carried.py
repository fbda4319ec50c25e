"""What blocks get beside hidden states where it differs from sequence to sequence: columns behind the states.

Embeddings for each layer depend on the token, keys and values of an earlier layer on all that came before. Both travel
with the states, so that whatever cuts states into sequences, changes them or differentiates by them does the same with
these: [token, keys and values of each layer that others share with]. The first column is the number of the token among
those of the calibration text, exact in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from export.contract.errors import InputError
from export.graph.spec import ModelSpec

ReadRows = Callable[[str, np.ndarray, int], torch.Tensor]  # module, rows, columns of the whole: float32 [rows, columns]
_PER_LAYER_SCALES = ("per_layer_projection_scale", "per_layer_input_scale")
_MOST_TOKENS = 1 << 24  # float32 counts no further


class NoValues(nn.Module):
    """Stands for a part whose outputs nobody reads: zeros [..., width], or its input where no width is given."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.width is None else torch.zeros(*x.shape[:2], self.width)


@dataclass(frozen=True)
class _Shared:
    """Where keys and values of a layer lie among the columns."""

    start: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return 2 * self.kv_heads * self.head_dim


class Carried:
    """The columns of one model, and how a block is called with them."""

    def __init__(self, spec: ModelSpec, layer_types: list[str]) -> None:
        self.spec, self._types = spec, layer_types
        self._inputs = torch.zeros(0)  # of each layer, by token
        self._shared: dict[int, _Shared] = {}
        self._streams = 1 if spec.altup is None else spec.altup.streams
        self.visible_width = self._streams * spec.hidden_size
        self.width = self.visible_width + 1
        for layer in sorted({spec.cache_layer(n) for n in range(spec.layers) if spec.cache_layer(n) != n}):
            heads = spec.heads_of(layer)
            self._shared[layer] = _Shared(self.width, heads.kv_heads, heads.head_dim)
            self.width += self._shared[layer].width

    @staticmethod
    def of(spec: ModelSpec, config: dict[str, Any]) -> Carried | None:
        """None for models whose blocks get the same for every sequence."""
        needed = spec.per_layer is not None or spec.cache_of_layer
        return Carried(spec, list(config["layer_types"])) if needed else None

    def silence(self, model: nn.Module) -> None:
        """Let the model compute no embeddings for layers: blocks get them from here."""
        if (table := self.spec.per_layer) is not None:
            parts = self.spec.layers * table.width
            for module, width in ((table.embedding, parts), (table.projection, parts), (table.norm, None)):
                model.set_submodule(module, NoValues(width))
        for name, _ in list(model.named_buffers()):
            if name.endswith(_PER_LAYER_SCALES):
                module, _, buffer = name.rpartition(".")
                setattr(model.get_submodule(module), buffer, torch.ones(()))

    def behind(self, hidden: torch.Tensor, tokens: np.ndarray, read: ReadRows) -> torch.Tensor:
        """The states of the first block, with the columns: float32 [sequences, length, self.width].

        hidden: float32 [sequences, length, visible_width]; tokens: int64 [sequences, length].
        """
        known, numbers = np.unique(tokens, return_inverse=True)
        if len(known) > _MOST_TOKENS:
            raise InputError(f"{len(known)} different tokens are more than can be counted")
        places = np.unique(numbers, return_index=True)[1]
        self._inputs = self._per_layer(
            hidden.flatten(0, 1)[torch.from_numpy(places), : self.spec.hidden_size], known, read
        )
        out = hidden.new_zeros(*hidden.shape[:2], self.width)
        out[..., : self.visible_width] = hidden
        out[..., self.visible_width] = torch.from_numpy(numbers.reshape(tokens.shape)).to(out.dtype)
        return out

    def _per_layer(self, embedded: torch.Tensor, tokens: np.ndarray, read: ReadRows) -> torch.Tensor:
        """float32 [tokens, layers, width] (export/graph/gemma/per_layer.py); embedded: [tokens, hidden]."""
        spec, table = self.spec, self.spec.per_layer
        if table is None:
            return torch.zeros(len(tokens), 0)
        parts = spec.layers * table.width
        wanted, places = np.unique(np.where(tokens < table.rows, tokens, 0), return_inverse=True)
        rows = read(table.embedding, wanted, parts)[torch.from_numpy(places)] * table.width**0.5
        projection = read(table.projection, np.arange(parts), spec.hidden_size)
        projected = (embedded @ projection.T * spec.hidden_size**-0.5).reshape(len(tokens), spec.layers, -1)
        norm = read(table.norm, np.arange(table.width), 0)
        size = torch.rsqrt(projected.square().mean(-1, keepdim=True) + spec.norm_epsilon)
        return (projected * size * (norm + spec.norm_offset) + rows.reshape(projected.shape)) * 2**-0.5

    def visible(self, states: torch.Tensor) -> torch.Tensor:
        """The hidden states alone; of several streams [few, length, streams * hidden_size]."""
        return states[..., : self.visible_width]

    def as_model(self, visible: torch.Tensor) -> torch.Tensor:
        """Hidden states as transformers' model passes them on: streams come first where there are several."""
        if self.spec.altup is None:
            return visible
        return visible.unflatten(-1, (self._streams, self.spec.hidden_size)).permute(2, 0, 1, 3)

    def of_model(self, hidden: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        return hidden if self.spec.altup is None else hidden.permute(1, 2, 0, 3).flatten(2)

    def call(
        self, layer: int, block: nn.Module, states: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """What the block of this layer makes of states [few, length, self.width]: the same with its keys and values.

        args and kwargs: what transformers gives it beside, of any sequence.
        """
        names = list(inspect.signature(block.forward).parameters)[1:]
        caches = {self._types[owner]: self._stored(states, where) for owner, where in self._shared.items()}
        mine: dict[str, Any] = {"shared_kv_states": caches}
        if self.spec.per_layer is not None:
            numbers = states[..., self.visible_width].detach().long()
            mine["per_layer_input"] = self._inputs.to(states.device)[numbers, layer]
        for name, value in mine.items():
            if name in names and (place := names.index(name)) < len(args):
                args = (*args[:place], value, *args[place + 1 :])
            else:
                kwargs = {**kwargs, name: value}
        found = block(self.as_model(self.visible(states)), *args, **kwargs)
        hidden = self.of_model(found[0] if isinstance(found, tuple) else found)
        rest = states[..., self.visible_width :]
        if layer in self._shared:
            where, flat = self._shared[layer], [v.transpose(1, 2).flatten(2) for v in caches[self._types[layer]]]
            start = where.start - self.visible_width
            rest = torch.cat([rest[..., :start], *flat, rest[..., start + where.width :]], -1)
        return torch.cat([hidden, rest], -1)

    def _stored(self, states: torch.Tensor, where: _Shared) -> tuple[torch.Tensor, ...]:
        """Keys and values [few, kv_heads, length, head_dim] of a layer that has been computed."""
        own = states[..., where.start : where.start + where.width]
        parts = own.unflatten(-1, (2, where.kv_heads, where.head_dim)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1]
