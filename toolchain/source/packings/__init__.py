"""Ways to pack weights of 2 to 8 bits into integers, undone by rule: a file each, with `packing(method, raw)`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from toolchain.source.packings.base import Packing


def packing_of(method: str, raw: dict[str, Any]) -> Packing | None:
    """The packing of a checkpoint whose config names this method and says `raw` of it; None where none is for it.

    Raises InputError for a variant of a packing that is not read.
    """
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if name != "base":
            found = importlib.import_module(f"toolchain.source.packings.{name}").packing(method, raw)
            if found is not None:
                return found
    return None
