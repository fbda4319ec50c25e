"""A choice that compiled code makes while it is compiled: by the kind of a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from numba.extending import overload

from runtime_py.engine.steps.step import Step


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
