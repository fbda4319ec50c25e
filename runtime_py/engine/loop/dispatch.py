"""Choices that compiled code makes while it is compiled: by the width of codes, by the kind of a step.

Numba optimizes a function together with all that it calls, so each layer between the loop and a kernel costs a second
of compilation: there is one for the kind and one for each width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from numba.extending import overload

from runtime_py.engine.kernels.matrix import width_number
from runtime_py.engine.steps.step import Step

LOOKED_UP = ("bits", "raw", "trellis")  # kinds of widths whose weights are entries of a codebook


def by_width(kernel: Any, kinds: tuple[str, ...] = LOOKED_UP) -> Any:
    """kernel(isa, width, ...) as dispatch(isa, widths, number, ...): compiled once for each width of these kinds."""

    def dispatch(isa, widths, number, arguments):
        """Stands for the code that Numba makes below; never called from Python."""

    @overload(dispatch)
    def choose(isa, widths, number, arguments):
        if not any(width.kind in kinds for width in widths):
            return lambda isa, widths, number, arguments: None
        if widths[0].kind not in kinds:
            return lambda isa, widths, number, arguments: dispatch(isa, widths[1:], number, arguments)
        if len(widths) == 1:
            return lambda isa, widths, number, arguments: kernel(isa, widths[0], *arguments)
        first = width_number(widths[0])

        def code(isa, widths, number, arguments):
            if number == first:
                kernel(isa, widths[0], *arguments)
            else:
                dispatch(isa, widths[1:], number, arguments)

        return code

    return dispatch


def by_kind(functions: Mapping[type[Step[Any]], Callable[..., Any]]) -> Any:
    """function(s, ...) as dispatch(s, ...): the one for the kind of step whose values s are.

    All functions take parameters of the same names. They are plain Python, compiled where they are used.
    """
    chosen = {kind.Values: function for kind, function in functions.items()}

    def dispatch(*arguments):
        """Stands for the code that Numba makes below; never called from Python."""

    def choose(s, *arguments):
        return chosen[s.instance_class]

    choose.__signature__ = inspect.signature(next(iter(functions.values())))
    overload(dispatch)(choose)
    return dispatch
