"""A device that is none: tensors on it lie in this machine's memory and behave as a GPU's do where that matters here.

An operation of its tensors with those of the processor is refused (but for single numbers, which torch lets pass), and
so is numpy(): whatever leaves the device has to say so. torch.device("lazy") is a name that torch knows, nothing else.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")


class There(torch.Tensor):
    """A tensor of the device; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = There(self.inner.clone())
        made = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        raise AssertionError(f"{function} of the device outside of StandIn")


class _Making(TorchFunctionMode):
    """torch.tensor(..., device=) allocates beneath what a dispatch mode sees."""

    def __torch_function__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        named = dict(named or {})
        if function is not torch.tensor or named.get("device") is None:
            return function(*arguments, **named)
        device = named.pop("device")
        return function(*arguments, **named).to(device)


class StandIn(TorchDispatchMode):
    """While it is on, `DEVICE` can be computed on. ran: how often each operation ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()
        self._making = _Making()

    def __enter__(self) -> StandIn:
        self._making.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._making.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        named = dict(named or {})
        tensors = [value for value in tree_leaves((arguments, named)) if isinstance(value, torch.Tensor)]
        there = [value for value in tensors if isinstance(value, There)]
        goes = bool(there)
        if named.get("device") is not None:
            goes = torch.device(named["device"]).type == DEVICE.type
            named["device"] = torch.device("cpu") if goes else named["device"]
        strangers = [value for value in tensors if not isinstance(value, There) and value.ndim]
        if there and strangers and function is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{function}: tensors on the device and on the processor")
        if goes:
            self.ran[function._schema.name] += 1
        found = function(*tree_map(_inner, arguments), **tree_map(_inner, named))
        if not goes or (function is torch.ops.aten.copy_.default and not isinstance(arguments[0], There)):
            return arguments[0] if function is torch.ops.aten.copy_.default else found
        known = {id(value.inner): value for value in there}
        return tree_map(
            lambda value: known.get(id(value), There(value)) if isinstance(value, torch.Tensor) else value, found
        )


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, There) else value
