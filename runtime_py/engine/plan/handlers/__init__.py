"""One function for each operator that the compiled machine has steps for; importing this room registers them all."""

from __future__ import annotations

from runtime_py.engine.plan.handlers import (
    attention,
    convolution,
    delta_net,
    elementwise,
    experts,
    gates,
    lookups,
    pages,
    products,
    razor,
    state_space,
)
from runtime_py.engine.plan.registry import handler_of

__all__ = [
    "attention",
    "convolution",
    "delta_net",
    "elementwise",
    "experts",
    "gates",
    "handler_of",
    "lookups",
    "pages",
    "products",
    "razor",
    "state_space",
]
