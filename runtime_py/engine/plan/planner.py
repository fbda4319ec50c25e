"""Turns the graph of a model folder into steps: reads what our exporter writes, fuses, and refuses what it cannot plan.

Fused: quantization of activations into the step that makes them, biases and residual sums into the product before them,
an activation with its gate, rotary positions with the write into the cache. A graph it cannot plan raises Unplannable
with the reason, and the interpreter (runtime_py/reference/session.py) runs it node by node.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.reader import Graph, Node
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, CodebookLayout
from export.contract.formats.trellis import TRELLIS_MATMUL, TrellisLayout
from export.contract.operators.integers import SDR_ATTENTION, SDR_MATMUL, SDR_QUANTIZE
from export.contract.sparse import SPARSE_MATMUL
from runtime_py.engine.kernels.matrix import matrix_record
from runtime_py.engine.plan import (
    attention as plan_attention,
)
from runtime_py.engine.plan import (
    elementwise as plan_elementwise,
)
from runtime_py.engine.plan import (
    lookups as plan_lookups,
)
from runtime_py.engine.plan import (
    products as plan_products,
)
from runtime_py.engine.plan import (
    razor as plan_razor,
)
from runtime_py.engine.plan.plan import Argument, Buffer, External, Quantized, Step
from runtime_py.engine.plan.values import AttentionShape, Pending, Tokens, Unplannable
from runtime_py.engine.steps import table as op
from runtime_py.reference.constants import ConstantFolder
from runtime_py.system.guard_pages import settled

Value = Tokens | Pending
_BY_POSITION = (op.EMBED, op.EMBED_DENSE, op.ATTEND, op.RAZOR_ATTEND)


class Planner:
    """Walks the nodes once. After plan(): steps, attention shapes, names of each cos and sin, arrays to keep."""

    def __init__(self, graph: Graph, chunk: int, indices: tuple[str, ...] = ("input_ids", "position_ids")) -> None:
        """chunk: most tokens of a call. indices: inputs that the caller sets and lookups may read."""
        self.graph, self.chunk, self.indices = graph, chunk, indices
        self.steps: list[Step] = []
        self.keep: list[np.ndarray] = []
        self.attention: list[AttentionShape] = []
        self.rotations: list[tuple[str, str]] = []
        self.bytes_per_token = 0  # weights read for one token
        self.widest = 64  # columns of the widest matrix
        self.result_width = 0
        self.values: dict[str, Value] = {}
        self.halves: dict[str, Tokens] = {}  # of float16 type
        self._names: dict[Buffer, list[str]] = {}  # values that lie in a buffer
        self._result = "logits"
        self.counted_positions = False  # whether positions may be counted from 0, as encoders do
        self._caches: dict[int, Buffer] = {}
        self.folder = ConstantFolder(graph)
        self.quantized: dict[Buffer, Quantized] = {}
        self.razored: dict[str, plan_razor.Razored] = {}  # codes, flags and units by name
        self.uses: dict[str, int] = {}
        self.seen: dict[str, int] = {}  # uses up to and including the node being visited
        for node in graph.nodes:
            for name in node.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1

    def plan(self) -> None:
        """All of a language model. Raises Unplannable."""
        for node in self.graph.nodes:
            for name in node.inputs:
                self.seen[name] = self.seen.get(name, 0) + 1
            self._visit(node)
        self._mark_last()

    def plan_encoder(self, states: str) -> None:
        """An encoder up to its states of all tokens; what comes behind is left out. Raises Unplannable."""
        self._result, self.counted_positions = states, True
        for node in self.graph.nodes:
            for name in node.inputs:
                self.seen[name] = self.seen.get(name, 0) + 1
            self._visit(node)
            if states in node.outputs:
                break
        self._send_out(states)

    def widths(self) -> list[int]:
        """WIDTH numbers of the products, in order."""
        products = (op.MATMUL, op.RAZOR_MATMUL)
        return sorted({int(s.arguments["width"]) for s in self.steps if s.operation in products})  # type: ignore[arg-type]

    def _visit(self, node: Node) -> None:
        if all(name in self.graph.weights for name in node.inputs if name):
            return  # a constant: computed if somebody asks
        known = any(name in self.values or name in self.razored or name in self.halves for name in node.inputs)
        if not known and node.op_type not in (CODEBOOK_GATHER, "Gather"):
            return  # masks and rotations: only attention reads them
        handler = {
            CODEBOOK_GATHER: plan_lookups.codebook_gather,
            CODEBOOK_MATMUL: plan_products.codebook_matmul,
            TRELLIS_MATMUL: plan_products.trellis_matmul,
            "Gather": plan_lookups.gather,
            "Cast": plan_elementwise.alias,
            "RMSNormalization": plan_elementwise.norm,
            "LayerNormalization": plan_elementwise.norm,
            "MatMul": plan_products.matmul,
            SPARSE_MATMUL: plan_products.sparse_matmul,
            "Add": plan_products.add,
            "Mul": plan_elementwise.mul,
            "Split": plan_elementwise.split,
            "Reshape": plan_elementwise.reshape,
            "Sigmoid": plan_elementwise.activation,
            "Gelu": plan_elementwise.activation,
            "Relu": plan_elementwise.activation,
            "Tanh": plan_elementwise.activation,
            "RotaryEmbedding": plan_attention.rotary,
            "Attention": plan_attention.attend,
            SDR_QUANTIZE: plan_razor.quantize,
            SDR_MATMUL: plan_razor.product,
            SDR_ATTENTION: plan_razor.attend,
        }.get(node.op_type)
        if handler is None:
            raise Unplannable(f"operator {node.op_type} of node {node.name}")
        handler(self, node)

    def vector(self, name: str, size: int) -> int:
        """Address of a constant of `size` numbers as contiguous float32."""
        array = settled(np.asarray(self.folder.constant(name), dtype=np.float32))
        if array.size != size:
            raise Unplannable(f"{name} has {array.size} numbers where {size} are needed")
        self.keep.append(array)
        return array.ctypes.data

    def cache_of(self, layer: int) -> Buffer:
        """Stands for a layer's cache in the search for meeting points; all layers of an encoder share one."""
        return self._caches.setdefault(0 if self.counted_positions else layer, Buffer(0))

    def new(self, width: int) -> Tokens:
        """A fresh buffer for a value of this width."""
        return Tokens(Buffer(4 * width * self.chunk), width, width)

    def give(self, name: str, value: Value) -> None:
        """Say what a name stands for."""
        self.values[name] = value
        self._say_who_reads(name, value)

    def give_half(self, name: str, value: Tokens) -> None:
        """Say what a name of float16 type stands for: only a Cast may read it, because steps compute with float32."""
        self.halves[name] = value
        self._say_who_reads(name, value)

    def _say_who_reads(self, name: str, value: Value) -> None:
        buffer = value.source.buffer if isinstance(value, Pending) else value.buffer
        self._names.setdefault(buffer, []).append(name)

    def needed(self, buffer: Buffer) -> bool:
        """Whether a later node reads a value that lies in this buffer, under any of its names, or it is the result."""
        names = self._names.get(buffer, [])
        while names:
            if names[-1] == self._result or self.uses.get(names[-1], 0) > self.seen.get(names[-1], 0):
                return True
            names.pop()  # the uses left only shrink
        return False

    def tokens(self, name: str, in_heads: bool = False) -> Tokens:
        """A value that steps can read; an activation that waited for its gate is computed now.

        in_heads: whether it may be cut into heads.
        """
        value = self.values.get(name)
        if isinstance(value, Pending):
            value = self.activate(value, None)
            self.give(name, value)
        if value is None or value.rotation is not None or (value.heads != 1 and not in_heads):
            raise Unplannable(f"{name} is not a plain value of the tokens")
        return value

    def emit(self, operation: int, arguments: dict[str, Argument], reads: list[Buffer], writes: list[Buffer]) -> Step:
        """Append a step; fields of its operation by name (steps.py)."""
        step = Step(operation, arguments, reads, writes)
        self.steps.append(step)
        return step

    def _last_step_writing(self, buffer: Buffer) -> Step | None:
        return next((s for s in reversed(self.steps) if buffer in s.writes), None)

    def as_int8(self, value: Tokens) -> Quantized:
        """The value quantized: by the step that makes it where that step can, else by a step of its own."""
        found = self.quantized.get(value.buffer)
        if found is not None and value.whole:
            return found
        made = Quantized.of(value.width, self.chunk)
        step = self.steps[-1] if self.steps else None
        makes = step is not None and step.operation in (op.NORM, op.ACTIVATE) and value.buffer in step.writes
        if step is not None and makes and value.whole and step.arguments.get("heads", 1) == 1:
            step.arguments |= made.arguments()
            step.writes.append(made.buffer)
        else:
            arguments: dict[str, Argument] = {
                "source": value.place,
                "stride": value.stride,
                "columns": value.width,
                **made.arguments(),
            }
            self.emit(op.QUANTIZE, arguments, [value.buffer], [made.buffer])
        if value.whole:
            self.quantized[value.buffer] = made
        return made

    def record(
        self, node: Node, layout: CodebookLayout | TrellisLayout, inputs: tuple[str, ...]
    ) -> tuple[int, np.ndarray]:
        """Address and numbers of a stored matrix's record (matrix.py); inputs: codes, codebook, scale."""
        codes, book = self.graph.weights[inputs[0]], self.graph.weights[inputs[1]]
        scale = np.ascontiguousarray(self.folder.constant(inputs[2]), dtype=np.float32)
        if scale.shape != layout.scale_shape:
            raise Unplannable(f"the scales of {node.name} have shape {list(scale.shape)}")
        if not np.isfinite(scale).all():
            raise InputError(f"node {node.name}: its scales hold numbers that are not finite")
        record, alive = matrix_record(layout, codes, book, scale)
        self.keep += [record, *alive]
        if node.op_type in (CODEBOOK_MATMUL, TRELLIS_MATMUL):
            self.bytes_per_token += codes.nbytes + book.nbytes + scale.nbytes
        return record.ctypes.data, record

    def activate(self, pending: Pending, gated: Tokens | None) -> Tokens:
        """A step for an activation, times its gate where there is one."""
        x = pending.source
        if pending.kind == -1 or (gated is not None and gated.width != x.width):
            raise Unplannable("an activation of unexpected form")
        out = self.new(x.width)
        arguments: dict[str, Argument] = {
            "kind": pending.kind,
            "source": x.place,
            "stride": x.stride,
            "gated": gated.place if gated else 0,
            "gated_stride": gated.stride if gated else 0,
            "columns": x.width,
            "out": out.place,
        }
        self.emit(op.ACTIVATE, arguments, [x.buffer, *([gated.buffer] if gated else [])], [out.buffer])
        return out

    def _mark_last(self) -> None:
        """Steps from the last norm on concern one token when only the last logits are asked for."""
        norms = [i for i, step in enumerate(self.steps) if step.operation == op.NORM and step.arguments["heads"] == 1]
        result = self.values.get("logits")
        if not isinstance(result, Tokens) or not norms:
            raise Unplannable("no logits behind a norm")
        made = {b for step in self.steps[: norms[-1]] for b in step.writes}
        tail = self.steps[norms[-1] + 1 :]
        if any(b in made for step in tail for b in step.reads) or any(s.operation in _BY_POSITION for s in tail):
            raise Unplannable("a head that reads more than the last norm")
        for step in self.steps[norms[-1] :]:
            step.last = True
        self._send_out("logits")

    def _send_out(self, name: str) -> None:
        """Let the step that makes a value write it to the caller's memory, External "result"."""
        result = self.values.get(name)
        writer = self._last_step_writing(result.buffer) if isinstance(result, Tokens) else None
        if writer is None or "out" not in writer.arguments or writer.arguments.get("accumulate"):
            raise Unplannable(f"{name}, which no step of its own makes")
        assert isinstance(result, Tokens)
        if not result.whole or result.heads != 1 or any(result.buffer in step.reads for step in self.steps):
            raise Unplannable(f"{name}, which is a part of a value or is read again")
        self.result_width = result.width
        writer.arguments["out"] = External("result")
        writer.writes.remove(result.buffer)
