"""What one forward pass costs in work: multiply-accumulates, bytes and shapes per node of the exported graph.

Reads the ONNX graph alone. Every value's shape is known from the file once batch, sequence and past length are bound;
an operator that is not in the tables raises, it never counts as free. Nodes that depend on stored weights alone run
once at load and are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from export.artefacts.reader import Graph
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from hw_model.graph_work import contrib, nodes
from hw_model.graph_work.integer_nodes import INTEGER_OPERATORS
from hw_model.graph_work.nodes import FREE, Context
from hw_model.graph_work.operation import (
    ACTIVATION_BYTES,
    CACHE_BYTES,
    Operation,
    Phase,
    expert_notes,
    held_bytes,
    outlier_notes,
)

__all__ = [
    "ACTIVATION_BYTES",
    "CACHE_BYTES",
    "Operation",
    "Phase",
    "expert_notes",
    "held_bytes",
    "operations",
    "outlier_notes",
]


def operations(graph: Graph, phase: Phase) -> list[Operation]:
    """Work of every node. Raises InputError on an operator that has no price or a value without a shape."""
    if phase.name == "decode" and not any(info.name.startswith("past_") for info in graph.inputs):
        raise InputError("model.onnx: has no cache, as an encoder; cost it with --phase prefill")
    context, found = Context.of(graph, phase), []
    for node in graph.nodes:
        if all(name in context.constant for name in node.inputs if name):
            context.constant.update(node.outputs)
            # what is decoded once at load is counted where it is used, at its stored size
            context.stored.update(dict.fromkeys(node.outputs, context.weight_bytes(node)))
            continue
        if node.op_type in FREE and not node.domain:
            continue
        price: Callable[..., Operation] = contrib.operation_of if node.domain == contrib.DOMAIN else nodes.operation_of
        if node.domain == DOMAIN:
            price = INTEGER_OPERATORS.get(node.op_type, price)
        try:
            operation = price(node, context)
        except InputError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise InputError(f"model.onnx: node {node.name} ({node.op_type}) is malformed ({kind}: {error})") from None
        found.append(operation)
    return found
