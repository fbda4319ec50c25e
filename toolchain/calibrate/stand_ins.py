"""What stands for the blocks of a model while what surrounds them runs: it keeps their arguments and passes on."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from export.contract.errors import InputError


class Stop(Exception):
    """Raised in place of the last block, once every block's arguments are known."""


_KINDS = ("attention_type", "block_type")  # what models ask their blocks for: ModernBERT, Nemotron-H


def _keep_kind(stand_in: nn.Module, block: nn.Module) -> None:
    for name in _KINDS:
        if hasattr(block, name):
            setattr(stand_in, name, getattr(block, name))


class Recorder(nn.Module):
    """Stands for one block: keeps its arguments and its first input, and passes the hidden states on."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__()
        _keep_kind(self, block)
        self.hidden: torch.Tensor | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._last = last

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hidden = hidden.detach() if self.hidden is None else self.hidden
        self.args, self.kwargs = args, kwargs
        if self._last:
            raise Stop
        return hidden


class Given(nn.Module):
    """Stands for one block: gives what this thread is to get from the last one."""

    def __init__(self, block: nn.Module, running: threading.local) -> None:
        super().__init__()
        _keep_kind(self, block)
        self._running = running

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given: torch.Tensor = self._running.given
        return given


def with_cache(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block with its cache argument replaced; families differ in its name and place."""
    names = list(inspect.signature(block.forward).parameters)[1:]
    name = next((n for n in ("past_key_values", "layer_past") if n in names), None)
    if name is None:
        raise InputError(f"{type(block).__name__} takes no key-value cache: --kv is not available for this family")
    place = names.index(name)
    if place < len(args):
        return (*args[:place], cache, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: cache}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor inside tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value
