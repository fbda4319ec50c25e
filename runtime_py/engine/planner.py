"""Turns the graph of a model folder into steps: reads what our exporter writes, fuses, and refuses what it cannot plan.

Fused: quantization of activations into the step that makes them, biases and residual sums into the product before them,
an activation with its gate, rotary positions with the write into the cache. A graph it cannot plan raises Unplannable
with the reason, and the interpreter (runtime_py/session.py) runs it node by node.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from export.contract import CODEBOOK_GATHER, CODEBOOK_MATMUL
from export.errors import InputError
from export.reader import Graph, Node
from runtime_py.engine import steps as op
from runtime_py.engine.elementwise import GELU, GELU_TANH, RELU, SILU, TANH
from runtime_py.engine.fence import settled
from runtime_py.engine.matrix import WIDTH, is_fast, matrix_record
from runtime_py.engine.plan import Argument, Buffer, External, Quantized, Step
from runtime_py.engine.values import AttentionShape, Pending, Tokens, Unplannable, stored_rows, window_of_mask
from runtime_py.folding import Folder

Value = Tokens | Pending


class Planner:
    """Walks the nodes once. After plan(): steps, attention shapes, names of each cos and sin, arrays to keep."""

    def __init__(self, graph: Graph, chunk: int) -> None:
        self.graph, self.chunk = graph, chunk
        self.steps: list[Step] = []
        self.keep: list[np.ndarray] = []
        self.attention: list[AttentionShape] = []
        self.rotations: list[tuple[str, str]] = []
        self.position_rows: int | None = None  # rows of a learned position table
        self.vocab_size = 0
        self.bytes_per_token = 0  # weights read for one token
        self.widest = 64  # columns of the widest matrix
        self._values: dict[str, Value] = {}
        self.folder = Folder(graph)
        self._quantized: dict[Buffer, Quantized] = {}
        self._uses: dict[str, int] = {}
        self._seen: dict[str, int] = {}  # uses up to and including the node being visited
        for node in graph.nodes:
            for name in node.inputs:
                self._uses[name] = self._uses.get(name, 0) + 1

    def plan(self) -> None:
        """Raises Unplannable."""
        for node in self.graph.nodes:
            for name in node.inputs:
                self._seen[name] = self._seen.get(name, 0) + 1
            self._visit(node)
        self._mark_last()

    def widths(self) -> list[int]:
        """WIDTH numbers of the products, in order."""
        return sorted({int(s.arguments["width"]) for s in self.steps if s.operation == op.MATMUL})  # type: ignore[arg-type]

    # Values and buffers

    def _visit(self, node: Node) -> None:
        if all(name in self.graph.weights for name in node.inputs if name):
            return  # a constant: computed if somebody asks
        if not any(name in self._values for name in node.inputs) and node.op_type not in (CODEBOOK_GATHER, "Gather"):
            return  # masks and rotations: only attention reads them
        handler = {
            CODEBOOK_GATHER: self._codebook_gather,
            CODEBOOK_MATMUL: self._codebook_matmul,
            "Gather": self._gather,
            "Cast": self._alias,
            "RMSNormalization": self._norm,
            "LayerNormalization": self._norm,
            "MatMul": self._matmul,
            "Add": self._add,
            "Mul": self._mul,
            "Split": self._split,
            "Reshape": self._reshape,
            "Sigmoid": self._activation,
            "Gelu": self._activation,
            "Relu": self._activation,
            "Tanh": self._activation,
            "RotaryEmbedding": self._rotary,
            "Attention": self._attend,
        }.get(node.op_type)
        if handler is None:
            raise Unplannable(f"operator {node.op_type} of node {node.name}")
        handler(node)

    def _vector(self, name: str, size: int) -> int:
        """Address of a constant of `size` numbers as contiguous float32."""
        array = settled(np.asarray(self.folder.constant(name), dtype=np.float32))
        if array.size != size:
            raise Unplannable(f"{name} has {array.size} numbers where {size} are needed")
        self.keep.append(array)
        return array.ctypes.data

    def _new(self, width: int) -> Tokens:
        return Tokens(Buffer(4 * width * self.chunk), width, width)

    def _tokens(self, name: str) -> Tokens:
        value = self._values.get(name)
        if isinstance(value, Pending):
            value = self._activate(value, None)
            self._values[name] = value
        if value is None or value.rotation is not None:
            raise Unplannable(f"{name} is not a plain value of the tokens")
        return value

    def _emit(self, operation: int, arguments: dict[str, Argument], reads: list[Buffer], writes: list[Buffer]) -> Step:
        step = Step(operation, arguments, reads, writes)
        self.steps.append(step)
        return step

    def _last_step_writing(self, buffer: Buffer) -> Step | None:
        return next((s for s in reversed(self.steps) if buffer in s.writes), None)

    def _as_int8(self, value: Tokens) -> Quantized:
        """The value quantized: by the step that makes it where that step can, else by a step of its own."""
        found = self._quantized.get(value.buffer)
        if found is not None:
            return found
        made = Quantized.of(value.width, self.chunk)
        step = self.steps[-1] if self.steps else None
        whole = value.column == 0 and value.stride == value.width
        makers = (op.NORM, op.ACTIVATE)
        if step is not None and whole and step.operation in makers and value.buffer in step.writes and value.heads == 1:
            step.arguments |= made.arguments()
            step.writes.append(made.buffer)
        else:
            arguments: dict[str, Argument] = {
                "source": value.place,
                "stride": value.stride,
                "columns": value.width,
                **made.arguments(),
            }
            self._emit(op.QUANTIZE, arguments, [value.buffer], [made.buffer])
        if whole:
            self._quantized[value.buffer] = made
        return made

    # Nodes

    def _ids(self, name: str) -> External:
        if name not in ("input_ids", "position_ids"):
            raise Unplannable(f"a lookup by {name}")
        return External(name)

    def _note_rows(self, name: str, rows: int) -> None:
        if name == "input_ids":
            self.vocab_size = rows
        else:
            self.position_rows = rows

    def _record(self, node: Node, inputs: tuple[str, ...]) -> tuple[int, np.ndarray]:
        layout = node.layout()
        codes, book = self.graph.weights[inputs[0]], self.graph.weights[inputs[1]]
        scale = np.ascontiguousarray(self.folder.constant(inputs[2]), dtype=np.float32)
        if scale.shape != layout.scale_shape:
            raise Unplannable(f"the scales of {node.name} have shape {list(scale.shape)}")
        if not np.isfinite(scale).all():
            raise InputError(f"node {node.name}: its scales hold numbers that are not finite")
        record, alive = matrix_record(layout, codes, book, scale)
        self.keep += [record, *alive]
        if node.op_type == CODEBOOK_MATMUL:
            self.bytes_per_token += codes.nbytes + book.nbytes + scale.nbytes
        return record.ctypes.data, record

    def _codebook_gather(self, node: Node) -> None:
        layout, out = node.layout(), self._new(node.layout().K)
        address, _ = self._record(node, node.inputs[1:])
        ids = self._ids(node.inputs[0])
        self._note_rows(node.inputs[0], layout.N)
        arguments: dict[str, Argument] = {
            "ids": ids,
            "matrix": address,
            "groups": layout.groups,
            "group_size": layout.columns_per_group,
            "columns": layout.K,
            "out": out.place,
        }
        self._emit(op.EMBED, arguments, [], [out.buffer])
        self._values[node.outputs[0]] = out

    def _gather(self, node: Node) -> None:
        if node.inputs[0] in self._values:
            self._reorder(node)
            return
        table = self.folder.constant(node.inputs[0])
        if table.ndim != 2 or node.attributes.get("axis", 0) != 0 or table.dtype not in (np.float16, np.float32):
            raise Unplannable(f"the lookup {node.name}")
        table = settled(table)
        self.keep.append(table)
        out = self._new(table.shape[1])
        ids = self._ids(node.inputs[1])
        self._note_rows(node.inputs[1], table.shape[0])
        arguments: dict[str, Argument] = {
            "ids": ids,
            "table": table.ctypes.data,
            "item_bytes": table.itemsize,
            "columns": table.shape[1],
            "out": out.place,
        }
        self._emit(op.EMBED_DENSE, arguments, [], [out.buffer])
        self._values[node.outputs[0]] = out

    def _reorder(self, node: Node) -> None:
        """Columns of a value in another order."""
        x, order = self._tokens(node.inputs[0]), self.folder.constant(node.inputs[1])
        if node.attributes.get("axis", 0) not in (-1, 2) or sorted(order.reshape(-1).tolist()) != list(range(x.width)):
            raise Unplannable(f"the lookup {node.name}")
        order = settled(np.ascontiguousarray(order, np.int64))
        self.keep.append(order)
        out = self._new(x.width)
        arguments: dict[str, Argument] = {
            "source": x.place,
            "stride": x.stride,
            "order": order.ctypes.data,
            "columns": x.width,
            "out": out.place,
        }
        self._emit(op.REORDER, arguments, [x.buffer], [out.buffer])
        self._values[node.outputs[0]] = out

    def _alias(self, node: Node) -> None:
        self._values[node.outputs[0]] = self._values[node.inputs[0]]

    def _reshape(self, node: Node) -> None:
        """Only the last dimension may be cut into heads, or joined again."""
        x, shape = self._tokens(node.inputs[0]), self.folder.constant(node.inputs[1]).tolist()
        heads = shape[2] if len(shape) == 4 else 1
        if shape[:2] != [0, 0] or len(shape) not in (3, 4) or math.prod(shape[2:]) != x.width:
            raise Unplannable(f"the reshape {node.name}")
        self._values[node.outputs[0]] = replace(x, heads=heads)

    def _norm(self, node: Node) -> None:
        x = self._tokens(node.inputs[0])
        out = self._new(x.width)
        if node.attributes.get("axis", -1) not in (-1, 2 if x.heads == 1 else 3):
            raise Unplannable(f"the axis of {node.name}")
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
        arguments: dict[str, Argument] = {
            "kind": op.LAYER if node.op_type == "LayerNormalization" else op.RMS,
            "source": x.place,
            "stride": x.stride,
            "scale": self._vector(node.inputs[1], x.width // x.heads),
            "bias": self._vector(node.inputs[2], x.width // x.heads) if has_bias else 0,
            "epsilon": float(node.attributes.get("epsilon", 1e-5)),
            "columns": x.width // x.heads,
            "heads": x.heads,
            "out": out.place,
        }
        self._emit(op.NORM, arguments, [x.buffer], [out.buffer])
        self._values[node.outputs[0]] = replace(out, heads=x.heads)

    def _codebook_matmul(self, node: Node) -> None:
        x, layout = self._tokens(node.inputs[0]), node.layout()
        if x.width != layout.K:
            raise Unplannable(f"the width of {node.inputs[0]}")
        address, record = self._record(node, node.inputs[1:])
        out = self._new(layout.N)
        self.widest = max(self.widest, layout.K)
        if is_fast(layout):
            q = self._as_int8(x)
            arguments: dict[str, Argument] = {
                "matrix": address,
                "width": int(record[WIDTH]),
                **q.arguments(),
                "out": out.place,
                "rows": layout.N,
                "row_bytes": layout.codes_shape[1],
            }
            self._emit(op.MATMUL, arguments, [q.buffer], [out.buffer])
        else:
            arguments = {
                "source": x.place,
                "stride": x.stride,
                "matrix": address,
                "groups": layout.groups,
                "group_size": layout.columns_per_group,
                "out": out.place,
                "rows": layout.N,
            }
            self._emit(op.GROUPED, arguments, [x.buffer], [out.buffer])
        self._values[node.outputs[0]] = out

    def _matmul(self, node: Node) -> None:
        """x @ W with W constant: stored as rows [N, K] behind a transpose, else transposed here."""
        if not self.folder.is_constant(node.inputs[1]):
            raise Unplannable(f"the product {node.name} of two computed values")
        x = self._tokens(node.inputs[0])
        weights = stored_rows(self.folder, self.graph, node.inputs[1])
        if weights.ndim != 2 or weights.shape[1] != x.width:
            raise Unplannable(f"the weights of {node.name}")
        weights = settled(weights)
        self.keep.append(weights)
        self.bytes_per_token += weights.nbytes
        out = self._new(weights.shape[0])
        arguments: dict[str, Argument] = {
            "source": x.place,
            "stride": x.stride,
            "weights": weights.ctypes.data,
            "item_bytes": weights.itemsize,
            "columns": x.width,
            "out": out.place,
            "rows": weights.shape[0],
        }
        self._emit(op.DENSE, arguments, [x.buffer], [out.buffer])
        self._values[node.outputs[0]] = out

    def _add(self, node: Node) -> None:
        constant = [self.folder.is_constant(name) for name in node.inputs]
        if any(constant):
            self._add_bias(node, node.inputs[constant.index(False)], node.inputs[constant.index(True)])
            return
        a, b = (self._tokens(name) for name in node.inputs)
        for product, other, other_name in ((b, a, node.inputs[0]), (a, b, node.inputs[1])):
            step = self.steps[-1]
            single = self._uses[node.inputs[1] if product is b else node.inputs[0]] == 1
            if (
                single
                and self._uses[other_name] == self._seen[other_name]  # nobody reads it later: it may be overwritten
                and step.operation in (op.MATMUL, op.GROUPED, op.DENSE)
                and step.writes == [product.buffer]
                and not step.arguments.get("accumulate")  # it holds only a part of the product then
                and other.column == 0
                and other.stride == other.width == product.width
                and other.buffer not in step.reads
            ):
                step.arguments |= {"out": other.place, "accumulate": 1}
                step.writes, step.reads = [other.buffer], [*step.reads, other.buffer]
                self._quantized.pop(other.buffer, None)
                self._values[node.outputs[0]] = other
                return
        if a.width != b.width:
            raise Unplannable(f"the sum {node.name} of different widths")
        out = self._new(a.width)
        arguments: dict[str, Argument] = {
            "a": a.place,
            "a_stride": a.stride,
            "b": b.place,
            "b_stride": b.stride,
            "columns": a.width,
            "out": out.place,
        }
        self._emit(op.ADD, arguments, [a.buffer, b.buffer], [out.buffer])
        self._values[node.outputs[0]] = out

    def _add_bias(self, node: Node, value: str, bias: str) -> None:
        x, step = self._tokens(value), self.steps[-1]
        vector = self.folder.constant(bias)
        fits = vector.shape == (x.width,) and self._uses[value] == 1
        if not fits or step.operation not in (op.MATMUL, op.GROUPED, op.DENSE) or step.writes != [x.buffer]:
            raise Unplannable(f"the constant added by {node.name}")
        step.arguments["bias"] = self._vector(bias, x.width)
        self._values[node.outputs[0]] = x

    def _activation(self, node: Node) -> None:
        tanh = node.attributes.get("approximate", "none") == "tanh"
        kind = {"Sigmoid": -1, "Relu": RELU, "Tanh": TANH, "Gelu": GELU_TANH if tanh else GELU}[node.op_type]
        self._values[node.outputs[0]] = Pending(kind, self._tokens(node.inputs[0]))

    def _mul(self, node: Node) -> None:
        constant = [self.folder.is_constant(name) for name in node.inputs]
        if any(constant):
            self._scale(node, node.inputs[constant.index(False)], node.inputs[constant.index(True)])
            return
        values = [self._values.get(name) for name in node.inputs]
        for pending, other in (values, values[::-1]):
            if not isinstance(pending, Pending):
                continue
            if pending.kind == -1:
                if other is not pending.source:
                    raise Unplannable(f"the sigmoid gate of {node.name}")
                self._values[node.outputs[0]] = Pending(SILU, pending.source)
                return
            if isinstance(other, Tokens) and other.rotation is None:
                self._values[node.outputs[0]] = self._activate(pending, other)
                return
        raise Unplannable(f"the product {node.name}")

    def _scale(self, node: Node, value: str, factor: str) -> None:
        x, number = self._tokens(value), self.folder.constant(factor)
        if number.size != 1:
            raise Unplannable(f"the constant product {node.name}")
        out = self._new(x.width)
        arguments: dict[str, Argument] = {
            "source": x.place,
            "stride": x.stride,
            "factor": float(number.reshape(-1)[0]),
            "columns": x.width,
            "out": out.place,
        }
        self._emit(op.SCALE, arguments, [x.buffer], [out.buffer])
        self._values[node.outputs[0]] = out

    def _activate(self, pending: Pending, gated: Tokens | None) -> Tokens:
        x = pending.source
        if pending.kind == -1 or (gated is not None and gated.width != x.width):
            raise Unplannable("an activation of unexpected form")
        out = self._new(x.width)
        arguments: dict[str, Argument] = {
            "kind": pending.kind,
            "source": x.place,
            "stride": x.stride,
            "gated": gated.place if gated else 0,
            "gated_stride": gated.stride if gated else 0,
            "columns": x.width,
            "out": out.place,
        }
        self._emit(op.ACTIVATE, arguments, [x.buffer, *([gated.buffer] if gated else [])], [out.buffer])
        return out

    def _split(self, node: Node) -> None:
        x, sizes = self._tokens(node.inputs[0]), self.folder.constant(node.inputs[1])
        if node.attributes.get("axis", 0) not in (-1, 2) or int(sizes.sum()) != x.width or int(sizes.min()) < 1:
            raise Unplannable(f"the split {node.name}")
        column = x.column
        for name, size in zip(node.outputs, sizes.tolist()):
            self._values[name] = Tokens(x.buffer, size, x.stride, column)
            column += size

    def _rotary(self, node: Node) -> None:
        x = self._tokens(node.inputs[0])
        pair = (node.inputs[1], node.inputs[2])
        if node.attributes.get("interleaved", 0):
            raise Unplannable(f"the rotation {node.name}")
        if pair not in self.rotations:
            self.rotations.append(pair)
        self._values[node.outputs[0]] = Tokens(x.buffer, x.width, x.stride, x.column, pair)

    def _attend(self, node: Node) -> None:
        query, key, value = (self._values.get(name) for name in node.inputs[:3])
        if not (isinstance(query, Tokens) and isinstance(key, Tokens) and isinstance(value, Tokens)):
            raise Unplannable(f"the inputs of {node.name}")
        heads, kv_heads = int(node.attributes["q_num_heads"]), int(node.attributes["kv_num_heads"])
        if heads < 1 or kv_heads < 1 or query.width % heads:
            raise Unplannable(f"the heads of {node.name}")
        head_dim = query.width // heads
        plain = node.attributes.get("is_causal", 0) == 1
        same = key.width == value.width == kv_heads * head_dim and query.rotation == key.rotation
        if not plain or not same or value.rotation is not None or heads % kv_heads:
            raise Unplannable(f"the attention {node.name}")
        window = window_of_mask(self.folder, node.inputs[3])
        index = len(self.attention)
        self.attention.append(AttentionShape(node.name, heads, kv_heads, head_dim))
        cache: dict[str, Argument] = {
            "keys": External(f"keys.{index}"),
            "values": External(f"values.{index}"),
            "capacity": External("capacity"),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
        }
        rotation = {}
        if query.rotation is not None:
            number = self.rotations.index(query.rotation)
            rotation = {name: External(f"{name}.{number}") for name in ("cos", "sin", "half")}
        arguments: dict[str, Argument] = {
            "query": query.place,
            "query_stride": query.stride,
            "key": key.place,
            "key_stride": key.stride,
            "value": value.place,
            "value_stride": value.stride,
            **rotation,
            **cache,
        }
        stored = Buffer(0)  # stands for this layer's cache in the search for meeting points
        self._emit(op.REMEMBER, arguments, [key.buffer, value.buffer], [query.buffer, key.buffer, stored])
        out = self._new(query.width)
        scale = float(node.attributes.get("scale", 1 / math.sqrt(head_dim)))
        arguments = {
            "query": query.place,
            "query_stride": query.stride,
            **cache,
            "window": window,
            "scale": scale,
            "softcap": float(node.attributes.get("softcap", 0.0)),
            "out": out.place,
            "out_stride": out.stride,
        }
        self._emit(op.ATTEND, arguments, [query.buffer, stored], [out.buffer])
        self._values[node.outputs[0]] = out

    def _mark_last(self) -> None:
        """Steps from the last norm on concern one token when only the last logits are asked for."""
        norms = [i for i, step in enumerate(self.steps) if step.operation == op.NORM and step.arguments["heads"] == 1]
        result = self._values.get("logits")
        if not isinstance(result, Tokens) or not norms:
            raise Unplannable("no logits behind a norm")
        self.logits = result
        made = {b for step in self.steps[: norms[-1]] for b in step.writes}
        tail = self.steps[norms[-1] + 1 :]
        if any(b in made for step in tail for b in step.reads) or any(s.operation == op.ATTEND for s in tail):
            raise Unplannable("a head that reads more than the last norm")
        for step in self.steps[norms[-1] :]:
            step.last = True
        writer = self._last_step_writing(result.buffer)
        if writer is None or "out" not in writer.arguments or writer.arguments.get("accumulate"):
            raise Unplannable("logits that are not a product")
        writer.arguments["out"] = External("logits")
        writer.writes = []
