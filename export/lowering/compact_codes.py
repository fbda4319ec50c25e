"""Vector and trellis codes become 8-bit codes, exactly: other runtimes have fast kernels for those.

before  VectorCodebookMatMul or TrellisCodebookMatMul(X, codes, codebook, scale)
after   CodebookMatMul(X, codes of 8 bits, -128..127, scale)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.formats.codebook import CODEBOOK_MATMUL, DOMAIN
from export.contract.formats.compact import COMPACT_LAYOUTS, compact_layout
from export.lowering.stored import lazy


def run(model: ir.Model) -> int:
    """Replace every such product in place; how many there were. Codes are expanded when the model is saved."""
    graph, count = model.graph, 0
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type in COMPACT_LAYOUTS:
            _replace(graph, node)
            count += 1
    return count


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    layout = compact_layout(node.op_type, {name: value.as_int() for name, value in node.attributes.items()})
    x, codes, book, scale = node.inputs
    assert codes is not None and book is not None and codes.const_value is not None and book.const_value is not None
    stored, entries = codes.const_value, book.const_value
    wide, levels = layout.widened(), np.arange(-128, 128, dtype=np.int8)[None, None]
    name = str(codes.name).removesuffix(".codes")
    inputs = [
        x,
        lazy(graph, f"{name}.expanded_codes", np.uint8, (layout.N, layout.K),
             lambda: layout.expanded(stored.numpy(), entries.numpy())),
        lazy(graph, f"{name}.expanded_codebook", np.int8, levels.shape, lambda: levels),
        scale,
    ]  # fmt: skip
    fresh = ir.node(CODEBOOK_MATMUL, inputs, wide.attributes(), domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)
