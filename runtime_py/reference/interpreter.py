"""Runs the nodes of a graph one after another on numpy arrays, in float32. Slow and obvious.

Weights stay in the mapped file. Nodes that depend on weights alone run once at load. How attention finds its keys is
the caller's business (session.py with a cache, encoder.py without one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from export.artefacts.graph import RUNTIME_DOMAIN, Graph, Node
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL
from export.contract.formats.groups import GROUP_GATHER, GROUP_MATMUL, GroupsLayout
from export.contract.operators.bit_planes import BIT_PLANE_MATMUL
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION, causal_convolution
from export.contract.operators.delta_rule import GATED_DELTA_RULE, DeltaRuleLayout, gated_delta_rule
from export.contract.operators.integers import SDR_ATTENTION, SDR_MATMUL, SDR_QUANTIZE
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.contract.operators.sparse_attention import SPARSE_ATTENTION
from export.contract.operators.state_space import SELECTIVE_STATE_SPACE, StateSpaceLayout, selective_state_space
from export.contract.operators.tender import TENDER_QUANTIZE
from export.contract.sparse import SPARSE_MATMUL
from runtime_py.reference.bit_planes import by_bit_planes
from runtime_py.reference.experts import expert_matmul
from runtime_py.reference.groups import group_matmul, group_rows
from runtime_py.reference.kernels import codebook_gather, codebook_matmul, sparse_matmul
from runtime_py.reference.operators import OPERATORS, run_operator
from runtime_py.reference.sdr import IntegerWeights, group_activations, razor_activations

Attend = Callable[[Node, list[Any]], np.ndarray]
TakeOver = Callable[[Node, list[Any]], "tuple[np.ndarray, ...] | None"]
AddTo = Callable[[Node, list[Any], "tuple[np.ndarray, ...]"], "tuple[np.ndarray, ...]"]


_CODEBOOKS, _GROUPS = (CODEBOOK_MATMUL, CODEBOOK_GATHER), (GROUP_MATMUL, GROUP_GATHER)
ATTENTIONS = ("Attention", SDR_ATTENTION, SINK_ATTENTION, SPARSE_ATTENTION)
_STATEFUL = (CAUSAL_CONVOLUTION, GATED_DELTA_RULE, SELECTIVE_STATE_SPACE)
_OURS = (
    *_CODEBOOKS, *_GROUPS, *_STATEFUL, SPARSE_MATMUL, SDR_QUANTIZE, TENDER_QUANTIZE, SDR_MATMUL, SDR_ATTENTION,
    SINK_ATTENTION, SPARSE_ATTENTION, BIT_PLANE_MATMUL,
)  # fmt: skip


def _is_codebook(node: Node) -> bool:
    return node.domain == DOMAIN and node.op_type in _CODEBOOKS


def _nothing(node: Node, inputs: list[Any]) -> None:
    """Every node as it is."""


def _as_they_are(node: Node, inputs: list[Any], outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return outputs


class Interpreter:
    """The graph's constants and the steps that remain."""

    def __init__(self, graph: Graph) -> None:
        """Raises InputError when the graph uses an operator this runtime lacks or its constants do not fit."""
        self._constants: dict[str, np.ndarray] = dict(graph.weights)
        self.steps: list[Node] = []
        self._layouts = {n.name: n.layout() for n in graph.nodes if _is_codebook(n)}
        self._integer_weights: dict[str, IntegerWeights] = {}
        for node in graph.nodes:
            self._admit(node)
        self._last_use = self._find_last_uses({info.name for info in graph.outputs})

    def run(
        self,
        values: dict[str, np.ndarray],
        attend: Attend,
        take_over: TakeOver = _nothing,
        add_to: AddTo = _as_they_are,
    ) -> dict[str, np.ndarray]:
        """Run all steps from these inputs; what remains in the dictionary are the outputs that were made.

        take_over: called with every node and its inputs; it may change the list, or return the outputs itself.
        add_to: called with its outputs, too; gives those that count.
        Raises InputError, also where an input has the name of a weight: kernels were told of the weight.
        """
        twice = sorted(values.keys() & self._constants.keys())
        if twice:
            raise InputError(f"model.onnx: {twice[0]} is both an input and a stored weight")
        for node, finished in zip(self.steps, self._last_use):
            inputs = [self._value(name, values) for name in node.inputs]
            outputs = take_over(node, inputs)
            if outputs is None:
                outputs = self._run_checked(node, inputs, attend)
            values.update(zip(node.outputs, add_to(node, inputs, outputs)))
            for name in finished:
                values.pop(name, None)
        return values

    def arrays(self) -> list[np.ndarray]:
        """The weights, and what has been computed from them alone."""
        return [*self._constants.values()]

    def _admit(self, node: Node) -> None:
        ours = node.domain == DOMAIN and (node.op_type in _OURS or node.is_expert_product)
        ours = ours or node.domain == RUNTIME_DOMAIN
        if not ours and (node.domain not in ("", "ai.onnx") or node.op_type not in {*OPERATORS, "Attention"}):
            raise InputError(f"model.onnx: operator {node.domain or 'ai.onnx'}::{node.op_type} is not supported here")
        if _is_codebook(node):
            self._prepare_scale(node)
        if node.op_type not in ATTENTIONS and all(name in self._constants for name in node.inputs if name):
            inputs = [self._constants[name] if name else None for name in node.inputs]
            self._constants.update(zip(node.outputs, self._run_checked(node, inputs, _no_attention)))
            return
        self.steps.append(node)

    def _prepare_scale(self, node: Node) -> None:
        """Kernels take float32 scales of the declared shape; they must be known when the folder is loaded."""
        scale = self._constants.get(node.inputs[3])
        expected = self._layouts[node.name].scale_shape
        if scale is None or scale.shape != expected or not np.isfinite(scale).all():
            raise InputError(
                f"node {node.name}: its scales are not constant, not finite or not of shape {list(expected)}"
            )
        self._constants[node.inputs[3]] = np.ascontiguousarray(scale, dtype=np.float32)

    def _find_last_uses(self, outputs: set[str]) -> list[list[str]]:
        """For each step, the values nobody reads after it; outputs of the graph stay."""
        last: dict[str, int] = {}
        for i, node in enumerate(self.steps):
            for name in node.inputs:
                if name not in self._constants and name not in outputs:
                    last[name] = i
        uses: list[list[str]] = [[] for _ in self.steps]
        for name, i in last.items():
            uses[i].append(name)
        return uses

    def _value(self, name: str, values: dict[str, np.ndarray]) -> Any:
        """A value by name; None for cache inputs, which attention finds elsewhere."""
        found = values.get(name)
        return found if found is not None else self._constants.get(name)

    def _run_checked(self, node: Node, inputs: list[Any], attend: Attend) -> tuple[np.ndarray, ...]:
        try:
            return self._run(node, inputs, attend)
        except InputError:
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise InputError(f"node {node.name}: {node.op_type} does not fit its inputs ({kind}: {error})") from None

    def _run(self, node: Node, inputs: list[Any], attend: Attend) -> tuple[np.ndarray, ...]:
        if node.domain == RUNTIME_DOMAIN:
            return (inputs[0],)  # and the term, which add_to() adds
        if node.is_expert_product:
            return (expert_matmul(inputs[0], inputs[1], node.expert_layout(), *inputs[2:]),)
        if node.domain == DOMAIN and node.op_type == SDR_QUANTIZE:
            return razor_activations(node, inputs[0], inputs[1])
        if node.domain == DOMAIN and node.op_type == BIT_PLANE_MATMUL:
            return (by_bit_planes(node, *inputs),)
        if node.domain == DOMAIN and node.op_type == TENDER_QUANTIZE:
            return group_activations(node, *inputs)
        if node.domain == DOMAIN and node.op_type == SDR_MATMUL:
            if node.name not in self._integer_weights:
                self._integer_weights[node.name] = IntegerWeights(node, *inputs[3:])
            return (self._integer_weights[node.name].product(*inputs[:3]),)
        if node.domain == DOMAIN and node.op_type == SPARSE_MATMUL:
            return (sparse_matmul(node.sparse_layout(), *inputs),)
        if node.op_type in ATTENTIONS:
            return (attend(node, inputs),)
        if node.domain == DOMAIN and node.op_type == CAUSAL_CONVOLUTION:
            return causal_convolution(*inputs)
        if node.domain == DOMAIN and node.op_type == GATED_DELTA_RULE:
            return _delta_rule(node, inputs)
        if node.domain == DOMAIN and node.op_type == SELECTIVE_STATE_SPACE:
            return _state_space(node, inputs)
        if node.domain == DOMAIN and node.op_type in _GROUPS:
            return (_of_groups(node, *inputs),)
        if node.domain == DOMAIN:
            layout, (x, codes, codebook, scale) = self._layouts[node.name], inputs
            if node.op_type == CODEBOOK_GATHER:
                rows = codebook_gather(x.reshape(-1), layout, codes, codebook, scale)
                return (rows.reshape(*x.shape, layout.K),)
            out = codebook_matmul(np.ascontiguousarray(x).reshape(-1, layout.K), layout, codes, codebook, scale)
            return (out.reshape(*x.shape[:-1], layout.N),)
        return run_operator(node.op_type, node.name, node.attributes, inputs)


def _delta_rule(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    query, key, value, decay, beta, rate, bias, past = inputs
    layout = DeltaRuleLayout.of(node.attributes, key.shape[-1], value.shape[-1])
    return gated_delta_rule(query, key, value, decay, beta, rate, bias, past, layout)


def _state_space(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x, step, written, read, rate, bias, skip, past = inputs
    layout = StateSpaceLayout.of(node.attributes, written.shape[-1], x.shape[-1])
    return selective_state_space(x, step, written, read, rate, bias, skip, past, layout)


def _of_groups(node: Node, x: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """A product with group-scaled codes, or rows of them."""
    layout = node.matrix_layout()
    assert isinstance(layout, GroupsLayout)
    if node.op_type == GROUP_GATHER:
        return group_rows(x.reshape(-1), layout, *parts).reshape(*x.shape, layout.K)
    out = group_matmul(np.ascontiguousarray(x, np.float32).reshape(-1, layout.K), layout, *parts)
    return out.reshape(*x.shape[:-1], layout.N)


def _no_attention(node: Node, inputs: list[Any]) -> np.ndarray:
    raise InputError(f"node {node.name}: attention over constants")
