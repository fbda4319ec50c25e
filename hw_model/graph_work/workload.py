"""What one forward pass costs in work: multiply-accumulates, bytes and shapes per node of the exported graph.

Reads the ONNX graph alone. Every value's shape is known from the file once batch, sequence and past length are bound;
an operator that is not in the tables raises, it never counts as free. Nodes that depend on stored weights alone run
once at load and are left out. Each stored byte is accounted for by one operation, however many nodes share it, so the
operations' `stored` together are the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from hw_model.graph_work import contrib, nodes
from hw_model.graph_work.context import Context
from hw_model.graph_work.integer_nodes import INTEGER_OPERATORS
from hw_model.graph_work.nodes import FREE
from hw_model.graph_work.operation import (
    ACTIVATION_BYTES,
    CACHE_BYTES,
    Operation,
    Phase,
    expert_notes,
    held_bytes,
    held_states,
    held_values,
    outlier_notes,
)
from hw_model.graph_work.sparse_attention import sparse_attention

_OURS = {**INTEGER_OPERATORS, SPARSE_ATTENTION: sparse_attention}
_PRODUCTS = ("linear", "experts")
_ORDER = {**dict.fromkeys(_PRODUCTS, 0), "embedding": 2}
__all__ = [
    "ACTIVATION_BYTES",
    "CACHE_BYTES",
    "Operation",
    "Phase",
    "expert_notes",
    "held_bytes",
    "held_states",
    "held_values",
    "operations",
    "outlier_notes",
]


def operations(graph: Graph, phase: Phase) -> list[Operation]:
    """Work of every node. Raises InputError on an operator that has no price or a value without a shape."""
    if phase.name == "decode" and not any(info.name.startswith("past_") for info in graph.inputs):
        raise InputError("model.onnx: has no cache, as an encoder; cost it with --phase prefill")
    if phase.sequences > 1 and not any(_takes_several(info.shape) for info in graph.inputs):
        raise InputError("model.onnx: takes one sequence at a time; cost it with --batch 1")
    context, found = Context.of(graph, phase), list[tuple[Operation, frozenset[str]]]()
    for node in graph.nodes:
        if all(name in context.constant for name in node.inputs if name):
            # what is decoded once at load is counted where it is used, at its stored size
            context.constant.update(dict.fromkeys(node.outputs, context.weights(node)))
            continue
        if node.op_type in FREE and not node.domain:
            continue
        price: Callable[..., Operation] = contrib.operation_of if node.domain == contrib.DOMAIN else nodes.operation_of
        if node.domain == DOMAIN:
            price = _OURS.get(node.op_type, price)
        try:
            operation = price(node, context)
        except InputError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise InputError(f"model.onnx: node {node.name} ({node.op_type}) is malformed ({kind}: {error})") from None
        found.append((operation, context.weights(node)))
    return _accounted(found, context.stored)


def _takes_several(shape: Sequence[int | str | None] | None) -> bool:
    return bool(shape) and shape[0] == "batch_size"  # type: ignore[index]


def _accounted(found: Sequence[tuple[Operation, frozenset[str]]], sizes: Mapping[str, int]) -> list[Operation]:
    """Operations with their share of the file: a weight counts where it is first multiplied with, else first used.

    Lookups come last, so that a table that is a product's matrix, too, is the product's.
    """
    uses = Counter(weights for op, weights in found if op.kind in _PRODUCTS)
    seen, matrices, operations = set[str](), set[frozenset[str]](), [op for op, _ in found]
    for place in sorted(range(len(found)), key=lambda i: _ORDER.get(found[i][0].kind, 1)):
        op, weights = found[place]
        own = sum(sizes.get(name, 0) for name in weights - seen)
        seen |= weights
        if op.kind in _PRODUCTS:
            operations[place] = replace(op, stored_bytes=own, uses=uses[weights], again=weights in matrices)
            matrices.add(weights)
        else:
            operations[place] = replace(op, stored_bytes=own)
    return operations
