"""What a budget gives to every linear layer (allocation.py makes it, blockwise.py keeps to it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """By a layer's full name; without a budget there is nothing to keep to."""

    widths: Mapping[str, int] = field(default_factory=dict)  # of codes, where they differ from the settings'
    columns: Mapping[str, int] | None = None  # that may be apart, where there are any; None: as many as are worth it
