"""Which widths are tried on which instruction set. Each pair is a kernel that has to be compiled.

`make test`: all widths on the best instruction set of the machine and on the portable one, one width on the others.
`make test-long`: all on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from runtime_py.machine.isa import available

ONE_WIDTH = 3
_WHOLE = (available()[0], "portable")


def with_widths(kinds: Sequence[Any], widths: Sequence[Any]) -> list[Any]:
    """Parameters (kind, width): kinds are names of instruction sets, or tuples that begin with one."""
    found = []
    for kind in kinds:
        own = kind if isinstance(kind, tuple) else (kind,)
        for width in widths:
            rare = own[0] not in _WHOLE and width != ONE_WIDTH
            found.append(pytest.param(*own, width, marks=pytest.mark.long if rare else ()))
    return found


def all_or_one(kinds: Sequence[Any]) -> list[Any]:
    """Parameters (kind, width to keep to): None for layouts of any width, which is long on the other sets."""
    return [
        param
        for param in with_widths(kinds, (None, ONE_WIDTH))
        if param.values[0] not in _WHOLE or not param.values[-1]
    ]


def at_width(layout: Any, width: int | None) -> Any:
    """The layout with codes of this width; as it is for None."""
    return layout if width is None else replace(layout, bits=width)
