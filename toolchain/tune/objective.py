"""What a block that is being calibrated is to keep: its outputs, and where its attention looks (ABQ-LLM, 2408.08554).

The paper's distribution correction: squared error and logarithm of the cosine to the source block's outputs, on the
same inputs and on the source's own, and the divergence of the attention maps, both ways round.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from toolchain.calibrate.blocks import BlockRunner

_LEAST = 1e-8  # probability; what a mask hides has none on both sides


class Objective:
    """The loss of single sequences, in threads; used in a `with` block, which the maps are watched in."""

    def __init__(
        self, runner: BlockRunner, blocks: tuple[nn.Module, nn.Module], hidden: torch.Tensor, followed: torch.Tensor
    ) -> None:
        """blocks: the one that is calibrated and the source's.

        hidden: inputs of both; followed: the source's outputs on its own inputs. float32 [sequences, length, hidden].
        """
        self._runner, (self._block, self._source) = runner, blocks
        self._hidden, self._followed, self._maps = hidden, followed, threading.local()
        self._handles: list[Any] = []

    def __enter__(self) -> Objective:
        names = self._runner.names(self._source)
        layer = names.query or names.fused_qkv
        attention = "" if layer is None else layer.rpartition(".")[0]
        if attention:
            for block in (self._block, self._source):
                self._handles.append(block.get_submodule(attention).register_forward_hook(self._keep_map))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_map(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Probabilities [few, heads, length, length], where the family's attention gives them beside its output."""
        parts = output if isinstance(output, tuple) else ()
        self._maps.last = next((p for p in parts if isinstance(p, torch.Tensor) and p.ndim == 4), None)

    def _outputs(self, block: nn.Module, own: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._maps.last = None
        found = self._runner.visible(self._runner.forward(block, self._hidden[own]))
        return found, self._maps.last

    def __call__(self, sequence: int) -> torch.Tensor:
        """The loss of one sequence, a scalar."""
        own = slice(sequence, sequence + 1)
        with torch.no_grad():
            target, aim = self._outputs(self._source, own)
        found, map_ = self._outputs(self._block, own)
        followed = self._runner.visible(self._followed[own]).to(found.device)
        loss = distance(found, target) + distance(found, followed)
        return loss if map_ is None or aim is None else loss + divergence(map_, aim)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error relative to what is wanted, less the mean logarithm of the cosine; [..., length, hidden]."""
    error = (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-30)
    cosine = nn.functional.cosine_similarity(found, wanted, dim=-1)
    return error - cosine.clamp_min(_LEAST).log().mean()


def divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL from one to the other and back, the mean over heads and queries, of probabilities [..., length, keys]."""
    found, wanted = found.clamp_min(_LEAST), wanted.clamp_min(_LEAST)
    return ((found - wanted) * (found.log() - wanted.log())).sum(dim=-1).mean()
