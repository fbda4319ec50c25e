"""What the handlers of operators work with: the values so far, and the primitives that make steps and constants.

Fused here: quantization of activations into the step that makes them, an activation with its gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from export.artefacts.graph import Graph, Node
from export.artefacts.states import recurrent_states
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_MATMUL, CodebookLayout
from export.contract.formats.groups import GroupsLayout
from export.contract.formats.trellis import TRELLIS_MATMUL, TrellisLayout
from runtime_py.engine.plan.placement import Argument, Buffer, External, PlannedStep
from runtime_py.engine.plan.values import (
    AttentionShape,
    Convolving,
    Gate,
    Pending,
    Quantized,
    Razored,
    Routed,
    Tokens,
)
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.group_matrix import GroupMatrix, group_record
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.engine.steps.attention import Rotate
from runtime_py.engine.steps.convolution import ShortConvolution
from runtime_py.engine.steps.delta_net import PLAIN, CausalConvolution
from runtime_py.engine.steps.elementwise import Activate, Norm
from runtime_py.engine.steps.integers import Quantize
from runtime_py.engine.steps.step import Step
from runtime_py.reference.constants import ConstantFolder
from runtime_py.system.guard_pages import settled
from runtime_py.system.paging import PAGE, read_anywhere

Value = Tokens | Pending


class Context:
    """State of one plan. Afterwards: steps, attention shapes, names of each cos and sin, arrays to keep."""

    def __init__(self, graph: Graph, chunk: int, indices: Sequence[str], result: str, counted_positions: bool) -> None:
        """chunk: most tokens of a call. indices: inputs that the caller sets and lookups may read.

        result: the value that is sent out. counted_positions: whether positions may be counted from 0, as encoders do.
        """
        self.graph, self.chunk, self.indices = graph, chunk, indices
        self.result, self.counted_positions = result, counted_positions
        self.steps: list[PlannedStep] = []
        self.keep: list[np.ndarray] = []
        self.attention: list[AttentionShape] = []
        self.cache_bits = 16  # of cached keys and values; 8 and 4: integer codes
        self.rotations: list[tuple[str, str]] = []
        self.bytes_per_token = 0  # weights read for one token
        self.widest = 64  # columns of the widest matrix
        self.gathering = 0  # bytes of scratch memory that inputs of experts take
        self.result_width = 0
        self.values: dict[str, Value] = {}
        self.halves: dict[str, Tokens] = {}  # of float16 type
        self.routed: dict[str, Routed] = {}  # of experts' routers
        self.convolving: dict[str, Convolving] = {}  # on the way through short convolutions
        self.recurrent = recurrent_states(graph)
        self.held = [state.shape[:0:-1] for state in self.recurrent]  # as the engine keeps them: positions first
        self.advanced: set[str] = set()  # outputs of recurrent states that a step makes
        self.unscaled: set[Buffer] = set()  # made by norms of heads whose scales are ones
        self.gates: dict[str, Gate] = {}  # of clamped gates
        self.by_head: dict[str, Tokens] = {}  # [batch, heads, tokens, head_dim] to the graph (handlers/earlier.py)
        self.cached: dict[str, tuple[int, int]] = {}  # number of the attention and of its output: keys 1, values 2
        self.folder = ConstantFolder(graph)
        self.quantized: dict[Buffer, list[Quantized]] = {}
        self.razored: dict[str, Razored] = {}  # codes, flags and units by name
        self._names: dict[Buffer, list[str]] = {}  # values that lie in a buffer
        self._caches: dict[int, Buffer] = {}
        self._uses: dict[str, int] = {}
        self._seen: dict[str, int] = {}  # uses up to and including the node being visited
        for node in graph.nodes:
            for name in node.inputs:
                self._uses[name] = self._uses.get(name, 0) + 1

    def enter(self, node: Node) -> None:
        """From now on this node is being planned."""
        for name in node.inputs:
            self._seen[name] = self._seen.get(name, 0) + 1

    # Constants

    def stored(self, array: np.ndarray) -> int:
        """Address of an array that steps read; it is kept alive."""
        array = settled(array)
        self.keep.append(array)
        return array.ctypes.data

    def page_of(self, experts: np.ndarray) -> int:
        """Bytes of a page of the mapped file that experts are in, which are read anywhere from now on; 0 where they
        are in memory, or the file fits into it.
        """
        return PAGE if self.graph.larger_than_memory and read_anywhere(experts) else 0

    def vector(self, name: str, size: int) -> int:
        """Address of a constant of `size` numbers as contiguous float32."""
        array = np.asarray(self.folder.constant(name), dtype=np.float32)
        if array.size != size:
            raise Unplannable(f"{name} has {array.size} numbers where {size} are needed")
        return self.stored(array)

    def record(self, node: Node, layout: CodebookLayout | TrellisLayout, inputs: tuple[str, ...]) -> tuple[int, int]:
        """Address and width of a stored matrix's record (stored_matrix.py); inputs: codes, codebook, scale."""
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
        return record.ctypes.data, matrix_width(record)

    def group_matrix(self, node: Node, inputs: tuple[str, ...]) -> tuple[int, GroupMatrix[int]]:
        """Address of the record of group-scaled codes, and the record; inputs: codes, scale, offset."""
        layout = node.matrix_layout()
        assert isinstance(layout, GroupsLayout)
        parts = [self.graph.weights[name] for name in inputs]
        row, alive = group_record(layout, *parts)
        self.keep += [row, *alive]
        if node.is_product:
            self.bytes_per_token += sum(part.nbytes for part in parts)
        return row.ctypes.data, GroupMatrix.of(row.tolist())

    # Values

    def new(self, width: int) -> Tokens:
        """A fresh buffer for a value of this width."""
        return Tokens(Buffer(4 * width * self.chunk), width, width)

    def cache_of(self, layer: int) -> Buffer:
        """Stands for a layer's cache in the search for barriers; all layers of an encoder share one."""
        return self._caches.setdefault(0 if self.counted_positions else layer, Buffer(0))

    def give(self, name: str, value: Value) -> None:
        """Say what a name stands for."""
        self.values[name] = value
        self._say_who_reads(name, value)

    def give_half(self, name: str, value: Tokens) -> None:
        """Say what a name of float16 type stands for: only a Cast may read it, because steps compute with float32."""
        self.halves[name] = value
        self._say_who_reads(name, value)

    def give_by_head(self, name: str, value: Tokens, heads: int = 0) -> None:
        """Say what a value stands for whose heads come before its tokens. heads: 0 for those that it is cut into."""
        self.by_head[name] = replace(value, heads=heads or value.heads)
        self._say_who_reads(name, value)

    def route(self, name: str, value: Routed) -> None:
        """Say what a value of an expert's router stands for."""
        self.routed[name] = value
        self._say_who_reads(name, value.value)
        if value.parts is not None:
            self._say_who_reads(name, value.parts)

    def convolve(self, name: str, value: Convolving) -> None:
        """Say what a value on its way through a short convolution stands for."""
        self.convolving[name] = value
        self._say_who_reads(name, value.inner)
        self._say_who_reads(name, value.values)

    def gate(self, name: str, value: Gate) -> None:
        """Say what a value of a clamped gate stands for."""
        self.gates[name] = value
        self._say_who_reads(name, value.source)

    def uses(self, name: str) -> int:
        """How many nodes read a value."""
        return self._uses.get(name, 0)

    def _say_who_reads(self, name: str, value: Value) -> None:
        buffer = value.source.buffer if isinstance(value, Pending) else value.buffer
        self._names.setdefault(buffer, []).append(name)

    def needed(self, buffer: Buffer) -> bool:
        """Whether a later node reads a value that lies in this buffer, under any of its names, or it is the result."""
        names = self._names.get(buffer, [])
        while names:
            if names[-1] == self.result or self._uses.get(names[-1], 0) > self._seen.get(names[-1], 0):
                return True
            names.pop()  # the uses left only shrink
        return False

    def tokens(self, name: str, in_heads: bool = False) -> Tokens:
        """A value that steps can read; an activation that waited for its gate, or a rotation, is computed now.

        in_heads: whether it may be cut into heads.
        """
        value = self.values.get(name)
        if isinstance(value, Pending):
            value = self.activate(value, None)
            self.give(name, value)
        if isinstance(value, Tokens) and value.rotation is not None:
            value = self.rotated(value)
            self.give(name, value)
        if value is None or (value.heads != 1 and not in_heads):
            raise Unplannable(f"{name} is not a plain value of the tokens")
        return value

    # Steps

    def emit(self, step: Step[Argument], reads: list[Buffer], writes: list[Buffer]) -> None:
        """Append a step; reads and writes are the buffers it touches."""
        self.steps.append(PlannedStep(step, reads, writes))

    def as_int8(self, value: Tokens, group: int = 0) -> Quantized:
        """The value quantized: by the step that makes it where that step can, else by a step of its own.

        group: columns of the groups whose sums are wanted, too; 0 for none.
        """
        known = self.quantized.get(value.buffer, []) if value.whole else []
        for found in known:
            if group in (0, found.group):
                return found
        made = Quantized.of(value.width, self.chunk, group)
        last = self.steps[-1] if self.steps else None
        if last is not None and value.whole and value.buffer in last.writes and _quantizes(last.step) and not known:
            last.step.quant, last.step.sums = made.quant, made.sums
            last.step.scales, last.step.high = made.scales, made.high
            if group:
                last.step.group, last.step.starts, last.step.shares = group, made.starts, made.shares
            last.writes.append(made.buffer)
        else:
            step = Quantize[Argument](
                source=value.place,
                stride=value.stride,
                columns=value.width,
                quant=made.quant,
                sums=made.sums,
                scales=made.scales,
                high=made.high,
                group=group,
                starts=made.starts if group else 0,
                shares=made.shares if group else 0,
            )
            self.emit(step, [value.buffer], [made.buffer])
        if value.whole:
            self.quantized[value.buffer] = [*known, made]
        return made

    def rotated(self, value: Tokens, interleaved: bool = False) -> Tokens:
        """A step for the rotation that a value waits for."""
        assert value.rotation is not None
        if value.width % value.turned_heads:
            raise Unplannable(f"a rotation of {value.turned_heads} heads in {value.width} columns")
        out, number = self.new(value.width), self.rotations.index(value.rotation)
        cos, sin, half = (External(f"{name}.{number}") for name in ("cos", "sin", "half"))
        step = Rotate[Argument](
            source=value.place,
            stride=value.stride,
            heads=value.turned_heads,
            head_dim=value.width // value.turned_heads,
            cos=cos,
            sin=sin,
            half=half,
            interleaved=int(interleaved),
            out=out.place,
        )
        self.emit(step, [value.buffer], [out.buffer])
        return out

    def activate(self, pending: Pending, gated: Tokens | None) -> Tokens:
        """A step for an activation, times its gate where there is one."""
        x, last = pending.source, self.steps[-1] if self.steps else None
        if gated is None and last is not None and isinstance(last.step, CausalConvolution):
            alone = last.writes == [x.buffer] and x.whole and x.heads == 1 and not self.needed(x.buffer)
            if alone and last.step.kind == PLAIN:  # made where its input is made
                last.step.kind = pending.kind
                return x
        return self.activated(pending.kind, x, gated)

    def activated(self, kind: int, x: Tokens, gated: Tokens | None, alpha: float = 0.0, limit: float = 0.0) -> Tokens:
        """A step for an activation of kernels/elementwise.py; alpha and limit: of a clamped gate."""
        if gated is not None and (gated.width, gated.heads) != (x.width, x.heads):
            raise Unplannable("an activation of unexpected form")
        out = self.new(x.width)
        step = Activate[Argument](
            kind=kind,
            source=x.place,
            stride=x.stride,
            gated=gated.place if gated else 0,
            gated_stride=gated.stride if gated else 0,
            columns=x.width,
            alpha=alpha,
            limit=limit,
            out=out.place,
        )
        self.emit(step, [x.buffer, *([gated.buffer] if gated else [])], [out.buffer])
        return replace(out, heads=x.heads)


def _quantizes(step: Step[Argument]) -> TypeGuard[Norm[Argument] | Activate[Argument] | ShortConvolution[Argument]]:
    """Whether this step can also write what it makes as int8."""
    return isinstance(step, Activate | ShortConvolution) or (isinstance(step, Norm) and step.heads == 1)


def _number(value: Argument) -> int:
    assert isinstance(value, int)
    return value
