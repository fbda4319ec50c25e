"""Runs a checkpoint one transformer block at a time with transformers' own layers, holding one block in memory.

The model is created on the meta device; a block's weights are read from the checkpoint when it is its turn and dropped
afterwards. Only hidden states are kept between blocks.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from export.errors import InputError
from export.spec import ModelSpec
from toolchain.source import SourceModel


class _Stop(Exception):
    """Raised in place of the last block, once every block's arguments are known."""


class _Recorder(nn.Module):
    """Stands for one block: keeps its arguments (the first also its inputs) and passes the hidden states on."""

    def __init__(self, first: bool, last: bool) -> None:
        super().__init__()
        self._first = first
        self.hidden: list[torch.Tensor] = []
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._last = last

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._first:
            self.hidden.append(hidden.detach())
        self.args, self.kwargs = args, kwargs
        if self._last:
            raise _Stop
        return hidden


class BlockRunner:
    """Embeds token sequences and pushes them through one block after another."""

    def __init__(self, source: SourceModel, spec: ModelSpec) -> None:
        self.source, self.spec = source, spec
        config = AutoConfig.for_model(**copy.deepcopy(source.config))
        # torch's fused attention has no soft cap
        config._attn_implementation = "sdpa" if spec.attention_softcap is None else "eager"
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self._model.eval()
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # by layer
        self._layer_of: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()

    def _module(self, name: str) -> nn.Module:
        return self._model.get_submodule(name.rstrip("."))

    def embed(self, tokens: np.ndarray) -> torch.Tensor:
        """Inputs of the first block, float32 [sequences, length, hidden], for tokens int64 [sequences, length].

        Also keeps the arguments (mask, rotary angles) that the model hands to each block for one sequence.
        """
        parent = self._module(self.spec.prefix(0).rstrip(".").rpartition(".")[0])
        assert isinstance(parent, nn.ModuleList)
        blocks = list(parent)
        recorders = [_Recorder(i == 0, i == len(blocks) - 1) for i in range(len(blocks))]
        with self._outside_weights(), torch.no_grad():
            try:
                for i, recorder in enumerate(recorders):
                    parent[i] = recorder
                for row in tokens:
                    with contextlib.suppress(_Stop):
                        self._model(input_ids=torch.from_numpy(row[None]), use_cache=False)
            finally:
                for i, block in enumerate(blocks):
                    parent[i] = block
        self._arguments = [(recorder.args, recorder.kwargs) for recorder in recorders]
        return torch.cat(recorders[0].hidden)

    @contextlib.contextmanager
    def _outside_weights(self) -> Iterator[None]:
        """Give the embeddings their weights and recompute the buffers that the meta device left empty."""
        names = [n for n in (self.spec.embedding, self.spec.position_embedding) if n]
        for name in names:
            module = self._module(name)
            module.weight = nn.Parameter(self.source.tensor(f"{name}.weight"), requires_grad=False)
            if "embed_scale" in dict(module.named_buffers()):
                module.embed_scale = torch.tensor(self.spec.embedding_scale)
        for name, module in list(self._model.named_modules()):
            if name.endswith("rotary_emb"):
                parent_name, _, child = name.rpartition(".")
                setattr(self._module(parent_name), child, type(module)(config=self._model.config))
        yield
        for name in names:
            self._module(name).to("meta")

    def load_block(self, layer: int) -> nn.Module:
        """Block `layer` with the checkpoint's weights, float32, on the CPU; the caller drops it when done."""
        prefix = self.spec.prefix(layer)
        block: nn.Module = copy.deepcopy(self._module(prefix)).to_empty(device="cpu")
        state = {}
        for name, parameter in block.named_parameters():
            state[name] = self.source.tensor(prefix + name, tuple(parameter.shape))
        missing, unexpected = block.load_state_dict(state, strict=False)
        buffers = {name for name, _ in block.named_buffers()}
        if set(missing) - buffers or unexpected:
            raise InputError(f"{self.source.folder}: block {layer} lacks {sorted(set(missing) - buffers)}")
        self._layer_of[block] = layer
        return block.eval().requires_grad_(False)

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Outputs of a block for all sequences, one at a time: float32 [sequences, length, hidden]."""
        out = torch.empty_like(hidden)
        args, kwargs = self._arguments[self._layer_of[block]]
        with torch.no_grad():
            for i in range(hidden.shape[0]):
                result = block(hidden[i : i + 1], *args, **kwargs)
                out[i : i + 1] = result[0] if isinstance(result, tuple) else result
        return out

    def hessians(
        self,
        block: nn.Module,
        names: tuple[str, ...],
        hidden: torch.Tensor,
        token_weights: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
        """H = 2 / T sum x x^T over all T tokens, float64 [K, K], for each linear layer of the block in `names`.

        token_weights [sequences, length] by name weight the terms of the sum (normalised to mean one). Without them,
        layers that read the same input share one array. Also returns the block's outputs.
        """
        sums: dict[str, torch.Tensor] = {}
        owner: dict[str, str] = {}
        seen: dict[int, tuple[str, torch.Tensor]] = {}
        current = 0  # the sequence that is running; read by the hooks

        def hook(name: str) -> Callable[..., None]:
            def accumulate(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                x = inputs[0]
                if token_weights is not None:
                    weight = token_weights[name]
                    root = torch.from_numpy(np.sqrt(weight[current] / max(float(weight.mean()), 1e-30)))
                    x = x * root[:, None].to(x.dtype)
                if id(x) in seen:  # query, key and value (gate and up) are called with the same tensor
                    owner[name] = seen[id(x)][0]
                    return
                seen[id(x)] = (name, x)  # holding x keeps its id from being reused within this sequence
                owner[name] = name
                rows = x.reshape(-1, x.shape[-1])
                gram = (rows.T @ rows).double()  # float32 products over one sequence, float64 across sequences
                sums[name] = sums[name] + gram if name in sums else gram

            return accumulate

        handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        outputs = torch.empty_like(hidden)
        try:
            for i in range(hidden.shape[0]):
                seen.clear()
                current = i
                outputs[i : i + 1] = self.run(block, hidden[i : i + 1])
        finally:
            for handle in handles:
                handle.remove()
        tokens = hidden.shape[0] * hidden.shape[1]
        shared = {name: (2.0 / tokens * total).numpy() for name, total in sums.items()}
        return {name: shared[owner[name]] for name in names}, outputs


def get_weight(module: nn.Module) -> np.ndarray:
    """A linear layer's weight as float32 [out, in], whatever layout the module stores."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return (weight.T if isinstance(module, Conv1D) else weight).detach().contiguous().numpy()


def set_weight(module: nn.Module, weights: np.ndarray) -> None:
    """Replace a linear layer's weight by float32 [out, in]."""
    value = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
    target = module.weight
    assert isinstance(target, torch.Tensor)
    with torch.no_grad():
        target.copy_(value.T if isinstance(module, Conv1D) else value)
