"""What the compiled machine raises where it leaves a graph to the interpreter."""

from __future__ import annotations


class Unplannable(Exception):
    """The graph holds something the compiled machine has no step for, or that is not proven to be safe."""


def need(condition: bool, message: str) -> None:
    """Raise Unplannable with the message unless the condition holds."""
    if not condition:
        raise Unplannable(message)
