"""Removes what the other passes left without a reader: nodes, initializers, function bodies."""

from __future__ import annotations

import onnx_ir as ir


def run(model: ir.Model) -> None:
    """Graph inputs stay, used or not: runtimes feed them by name."""
    graph = model.graph
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(out.uses() or out in outputs for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
    used = {(node.domain, node.op_type) for node in graph}
    for key, function in list(model.functions.items()):
        if (function.domain, function.name) not in used:
            del model.functions[key]
    domains = {node.domain for node in graph} | {function.domain for function in model.functions.values()} | {""}
    for domain in list(model.opset_imports):
        if domain not in domains:
            del model.opset_imports[domain]
