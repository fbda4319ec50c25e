"""Outputs of a block's parts that no longer change, so that later passes over the same states do not compute them.

A block whose layers are quantized in the order in which they are computed (drift.py) is run again for every group of
them. Its attention is as it will be once its last layer is quantized: what it gives for each sequence is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from toolchain.calibrate.blocks import BlockRunner

_ROOM = 1 << 29  # bytes that the outputs of a part may take


class FinishedParts:
    """Watches one block; after forget(), and the `with` block, that computes everything again."""

    def __init__(self, runner: BlockRunner, block: nn.Module, names: Iterable[str], hidden: torch.Tensor) -> None:
        """names: of all layers that are quantized; hidden: the states that pass, float32 [sequences, length, hidden].

        Nothing is kept on a device, whose memory has no room for it, and where states are more than a block's input.
        """
        self._waiting: dict[str, set[str]] = {}  # layers that are not quantized yet, by child of the block
        self._forwards: list[nn.Module] = []
        self._block, self._running = block, threading.local()
        self._handles: list[RemovableHandle] = []
        if runner.device.type == "cpu" and runner.state_size == runner.spec.hidden_size and hidden.nbytes <= _ROOM:
            self._handles.append(block.register_forward_pre_hook(self._note))
            for name in names:
                child, _, layer = name.partition(".")
                if layer:  # else the child is the layer
                    self._waiting.setdefault(child, set()).add(name)

    def quantized(self, names: Iterable[str]) -> None:
        """These layers are as they stay; parts that have no others keep their outputs from now on."""
        for child, waiting in list(self._waiting.items()):
            waiting -= set(names)
            if not waiting:
                del self._waiting[child]
                module = self._block.get_submodule(child)
                module.forward = partial(self._kept, module.forward, {})  # type: ignore[method-assign]
                self._forwards.append(module)

    def __enter__(self) -> FinishedParts:
        return self

    def __exit__(self, *error: object) -> None:
        self.forget()

    def forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._forwards:
            del module.forward
        self._waiting, self._forwards = {}, []

    def _note(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._running.place = inputs[0].data_ptr()  # states stay where they are: that is which sequences they are of

    def _kept(self, forward: Callable[..., Any], known: dict[int, Any], *args: Any, **kwargs: Any) -> Any:
        place = self._running.place
        if place not in known:
            known[place] = _copied(forward(*args, **kwargs))
        return _copied(known[place])


def _copied(value: Any) -> Any:
    """The same with tensors of their own, which a block may change in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value
