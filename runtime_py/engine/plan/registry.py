"""Who plans which operator: handlers register themselves by domain and operator, the walk looks them up."""

from __future__ import annotations

from collections.abc import Callable

from export.artefacts.graph import Node
from runtime_py.engine.plan.context import Context

Handler = Callable[[Context, Node], None]
_HANDLERS: dict[tuple[str, str], Handler] = {}


def handles(domain: str, *operators: str) -> Callable[[Handler], Handler]:
    """Register the decorated function, which plans one node or raises Unplannable; ValueError on a second one."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            if _HANDLERS.setdefault((domain, operator), handler) is not handler:
                raise ValueError(f"two handlers of {domain}::{operator}")
        return handler

    return register


def handler_of(node: Node) -> Handler | None:
    """Who plans this node; None where nobody does."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _HANDLERS.get((domain, node.op_type))
