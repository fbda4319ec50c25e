"""Valid graphs nobody would export, made from a random number.

A graph is composed of random nodes of the supported set with legal types and odd shapes, or is one of a real export
with nodes inserted, edges moved and outputs renamed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.artefacts.graph import Graph, Node, ValueInfo
from export.artefacts.reader import read_graph
from export.artefacts.states import is_recurrent, output_of
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN, CodebookLayout
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.contract.operators.delta_rule import GATED_DELTA_RULE
from export.contract.operators.state_space import LARGEST, SELECTIVE_STATE_SPACE
from export.contract.packing import pack
from export.contract.sparse import SPARSE_MATMUL

WIDTHS = (1, 7, 8, 16, 24, 32, 63, 64, 65, 100, 128, 192, 255, 256, 257, 320, 512)
_BITS = ((3,), (3,), (2, 3), (4,), (5,))  # of the matrices of one graph: each set is a machine that is compiled once


_INPUTS = tuple(
    ValueInfo(name, np.dtype(np.int64), ("batch", "tokens")) for name in ("input_ids", "attention_mask", "position_ids")
)


@dataclass
class Composer:
    """Nodes and weights so far, and the widths of the values that may be read."""

    random: random.Random
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    masks: dict[int, str] = field(default_factory=dict)
    attentions: int = 0
    states: list[ValueInfo] | None = None  # recurrent ones, in a graph that may have some
    bits: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.random.randrange(1 << 32))

    def weight(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype, order="C")
        return name

    def node(
        self, op_type: str, inputs: tuple[str, ...], outputs: int = 1, domain: str = "", **attributes
    ) -> list[str]:
        at = f"n{len(self.nodes)}"
        names = tuple(f"{at}.{i}" for i in range(outputs))
        self.nodes.append(Node(op_type, domain, at, inputs, names, attributes))
        return list(names)

    def value(self, width: int, *arguments, **attributes) -> str:
        (name,) = self.node(*arguments, **attributes)
        self.widths[name] = width
        return name

    def some(self, width: int | None = None) -> str:
        """A value, mostly a late one; of this width if there is one."""
        names = [n for n, w in self.widths.items() if width is None or w == width]
        return names[-1] if self.random.random() < 0.6 else self.random.choice(names)

    def _codebook(self, rows: int, columns: int, group: int) -> tuple[dict[str, int], tuple[str, ...]]:
        bits = self.random.choice(self.bits if group == 0 else (2, 3, 5))
        layout = CodebookLayout(bits, columns, rows, group, self.random.choice((rows, 7)), self.random.choice((1, 4)))
        codes = pack(self.numbers.integers(0, 1 << bits, (rows, columns), dtype=np.uint8), bits)
        book = self.numbers.integers(-100, 101, layout.codebook_shape)
        scale = (self.numbers.random(layout.scale_shape) + 0.5) / (60 * columns**0.5)
        stored = self.weight(codes, np.uint8), self.weight(book, np.int8), self.weight(scale)
        return layout.attributes(), stored

    def lookup(self, width: int, ids: str = "") -> str:
        ids = ids or self.random.choice(("input_ids", "input_ids", "position_ids"))
        rows = self.random.choice((1, 3, 40, 50)) if self.random.random() < 0.2 else 60
        if self.random.random() < 0.5:
            group = self.random.choice((0, 16)) if width >= 16 else 0
            attributes, stored = self._codebook(rows, width, group)
            return self.value(width, CODEBOOK_GATHER, (ids, *stored), domain=DOMAIN, **attributes)
        table = self.weight(self.numbers.standard_normal((rows, width)), self.random.choice((np.float16, np.float32)))
        name = self.value(width, "Gather", (table, ids))
        if self.weights[table].dtype == np.float32:
            return name
        if self.random.random() < 0.95:
            del self.widths[name]  # else others compute with float16
        return self.value(width, "Cast", (name,), to=1)

    def product(self, x: str, rows: int) -> str:
        columns, kind = self.widths[x], self.random.randrange(6)
        if kind <= 2:
            attributes, stored = self._codebook(rows, columns, 0)
            return self.value(rows, CODEBOOK_MATMUL, (x, *stored), domain=DOMAIN, **attributes)
        if kind == 3 and columns > 16:
            attributes, stored = self._codebook(rows, columns, 16)
            return self.value(rows, CODEBOOK_MATMUL, (x, *stored), domain=DOMAIN, **attributes)
        if kind == 4:
            count = self.random.choice((0, 1, min(rows * columns, 40)))
            gaps = self.numbers.integers(1, max(rows * columns // max(count, 1), 2), count)
            stored = self.weight(gaps, np.uint16), self.weight(self.numbers.standard_normal(count))
            return self.value(rows, SPARSE_MATMUL, (x, *stored), domain=DOMAIN, K=columns, N=rows)
        matrix = self.weight(self.numbers.standard_normal((columns, rows)) / columns**0.5)
        return self.value(rows, "MatMul", (x, matrix))

    def norm(self, x: str) -> str:
        width = self.widths[x]
        scale = self.weight(self.numbers.random(width) + 0.5)
        if self.random.random() < 0.6:
            return self.value(width, "RMSNormalization", (x, scale), axis=-1, epsilon=1e-5)
        bias = (self.weight(self.numbers.standard_normal(width)),) if self.random.random() < 0.5 else ()
        return self.value(width, "LayerNormalization", (x, scale, *bias), axis=-1, epsilon=1e-5)

    def step(self) -> None:
        """One more node or a few that belong together."""
        x = self.some()
        width, kind = self.widths[x], self.random.randrange(17)
        if kind == 0:
            self.lookup(width)
        elif kind == 1:
            self.norm(x)
        elif kind in (2, 3, 4):
            self.product(x, self.random.choice((width, width, self.random.choice(WIDTHS))))
        elif kind in (5, 6):
            self.value(width, "Add", (x, self.some(width)))
        elif kind == 7:
            self.value(width, "Add", (x, self.weight(self.numbers.standard_normal(width))))
        elif kind == 8:
            self.value(width, "Mul", (x, self.weight(self.random.choice((0.5, 1.5)))))
        elif kind == 9:
            name = self.value(width, self.random.choice(("Gelu", "Relu", "Tanh")), (x,))
            if self.random.random() < 0.5:
                self.value(width, "Mul", (name, self.some(width)))
        elif kind == 10:
            gate = self.node("Sigmoid", (x,))[0]
            if self.random.random() < 0.5:
                self.step()
            self.value(width, "Mul", (x, gate))
        elif kind == 11 and width > 1:
            self.split(x)
        elif kind == 12:
            self.value(width, "Cast", (x,), to=1)
        elif kind == 13:
            self.heads(x)
        elif kind == 14:
            order = self.weight(self.numbers.permutation(width), np.int64)
            self.value(width, "Gather", (x, order), axis=2)
        elif kind == 15 and self.states is not None and len(self.states) < 4:
            self.random.choice((self.delta_net, self.state_space))(x)
        elif width % 8 == 0 and self.attentions < 2:
            self.attention(x)

    def split(self, x: str) -> None:
        width = self.widths[x]
        cuts = sorted(self.random.sample(range(1, width), min(self.random.choice((1, 1, 2)), width - 1)))
        if width % 2 == 0 and self.random.random() < 0.5:
            cuts = [width // 2]
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, width])]
        names = self.node("Split", (x, self.weight(sizes, np.int64)), len(sizes), axis=-1)
        self.widths |= dict(zip(names, sizes))

    def heads(self, x: str) -> None:
        width = self.widths[x]
        count = self.random.choice([n for n in (1, 2, 4) if width % n == 0])
        (cut,) = self.node("Reshape", (x, self.weight([0, 0, count, width // count], np.int64)))
        if self.random.random() < 0.8:
            scale = self.weight(self.numbers.random(width // count) + 0.5)
            (cut,) = self.node("RMSNormalization", (cut, scale), axis=-1, epsilon=1e-5)
        self.value(width, "Reshape", (cut, self.weight([0, 0, width], np.int64)))

    def attention(self, x: str) -> None:
        width, r = self.widths[x], self.random
        kv_heads, repeat = r.choice(((1, 1), (1, 2), (2, 2)))
        heads, dim = kv_heads * repeat, 8 * r.choice((1, 2, 3))
        if r.random() < 0.3 and width % heads == 0 and width // heads >= 2:
            dim, kv_heads = width // heads, heads
            query = key = value = x
        else:
            fused = self.product(x, (heads + 2 * kv_heads) * dim)
            sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
            query, key, value = self.node("Split", (fused, self.weight(sizes, np.int64)), 3, axis=-1)
            self.widths |= dict(zip((query, key, value), sizes))
            if r.random() < 0.3:
                value = self.some(kv_heads * dim)
        if r.random() < 0.7 and dim % 2 == 0:
            half = r.choice((dim // 2, dim // 4 or 1))
            angles = self.rotation(half)
            others = self.rotation(half) if r.random() < 0.2 else angles
            pairs = {"interleaved": 1} if r.random() < 0.3 else {}
            query = self.node("RotaryEmbedding", (query, *others), num_heads=heads, **pairs)[0]
            key = self.node("RotaryEmbedding", (key, *angles), num_heads=kv_heads, **pairs)[0]
        self.attentions += 1
        inputs = (query, key, value, self.mask(r.choice((0, 0, 5))))
        self.value(
            heads * dim, "Attention", inputs, q_num_heads=heads, kv_num_heads=kv_heads, is_causal=1, scale=dim**-0.5
        )

    def delta_net(self, x: str) -> None:
        """Keys and values through a convolution or without one, and the delta rule over them."""
        r, numbers = self.random, self.numbers
        key_heads, repeat, key_dim, value_dim = (
            r.choice((1, 2)),
            r.choice((1, 3)),
            r.choice((1, 8, 20)),
            r.choice((3, 40)),
        )
        heads = key_heads * repeat
        sizes = [key_heads * key_dim, key_heads * key_dim, heads * value_dim]
        mixed = self.product(x, sum(sizes))
        if r.random() < 0.8:
            kernel = numbers.standard_normal((sum(sizes), 1, r.choice((2, 4)))) / 2
            state = (sum(sizes), kernel.shape[2] - 1)
            inputs = (mixed, self.weight(kernel))
            mixed = self._stateful(CAUSAL_CONVOLUTION, inputs, "conv_state", state, sum(sizes), channels=sum(sizes))
        if r.random() < 0.7:
            (gate,) = self.node("Sigmoid", (mixed,))
            mixed = self.value(sum(sizes), "Mul", (mixed, gate))
        parts = self.node("Split", (mixed, self.weight(sizes, np.int64)), 3, axis=-1)
        self.widths |= dict(zip(parts, sizes))
        decay, beta = self.product(x, heads), self.product(self.some(), heads)
        rate = self.weight(-np.exp(numbers.standard_normal(heads)))
        inputs = (*parts, decay, beta, rate, self.weight(numbers.standard_normal(heads)))
        self._stateful(
            GATED_DELTA_RULE, inputs, "recurrent_state", (heads, key_dim, value_dim), heads * value_dim,
            key_heads=key_heads, value_heads=heads, epsilon=1e-6,
        )  # fmt: skip

    def state_space(self, x: str) -> None:
        """Values, B and C through a convolution, with or without a bias, a state space over them, a norm by groups."""
        r, numbers = self.random, self.numbers
        groups, repeat, size, dim = r.choice((1, 2)), r.choice((1, 3)), r.choice((1, 8, 20)), r.choice((3, 40))
        heads = groups * repeat
        values = heads * dim
        sizes = [values, groups * size, groups * size]
        mixed = self.product(x, sum(sizes))
        if r.random() < 0.8:
            kernel = numbers.standard_normal((sum(sizes), 1, r.choice((2, 4)))) / 2
            inputs = (mixed, self.weight(kernel))
            state = (sum(sizes), kernel.shape[2] - 1)
            mixed = self._stateful(CAUSAL_CONVOLUTION, inputs, "conv_state", state, sum(sizes), channels=sum(sizes))
            if r.random() < 0.5:
                bias = self.weight(numbers.standard_normal(sum(sizes)))
                mixed = self.value(sum(sizes), "Add", (mixed, bias))
        parts = self.node("Split", (mixed, self.weight(sizes, np.int64)), 3, axis=-1)
        self.widths |= dict(zip(parts, sizes))
        rate = self.weight(-np.exp(numbers.standard_normal(heads)))
        rest = [self.weight(numbers.standard_normal(heads)) for _ in range(2)]
        inputs = (parts[0], self.product(self.some(), heads), *parts[1:], rate, *rest)
        made = self._stateful(
            SELECTIVE_STATE_SPACE,
            inputs,
            "recurrent_state",
            (heads, size, dim),
            values,
            heads=heads,
            groups=groups,
            least=r.choice((0.0, 0.1)),
            most=r.choice((1.0, LARGEST)),
        )
        if r.random() < 0.5:
            split, joined = ([0, 0, groups, values // groups], [0, 0, values])
            (apart,) = self.node("Reshape", (made, self.weight(split, np.int64)))
            ones = self.weight(np.ones(values // groups))
            (normed,) = self.node("RMSNormalization", (apart, ones), axis=-1, epsilon=1e-5)
            (flat,) = self.node("Reshape", (normed, self.weight(joined, np.int64)))
            self.value(values, "Mul", (flat, self.weight(numbers.standard_normal(values))))

    def _stateful(
        self, op_type: str, inputs: tuple[str, ...], kind: str, shape: tuple[int, ...], width: int, **attributes
    ) -> str:
        """A node with a state of its own."""
        assert self.states is not None
        state = f"past_key_values.{len(self.states)}.{kind}"
        self.states.append(ValueInfo(state, np.dtype(np.float32), ("batch", *shape)))
        name = self.value(width, op_type, (*inputs, state), domain=DOMAIN, **attributes)
        self.nodes[-1] = replace(self.nodes[-1], outputs=(name, output_of(state)))
        return name

    def rotation(self, half: int) -> tuple[str, str]:
        (positions,) = self.node("Cast", ("position_ids",), to=1)
        (column,) = self.node("Unsqueeze", (positions, self.weight([-1], np.int64)))
        frequencies = self.weight(10.0 ** -np.linspace(0, 3, half))
        (angle,) = self.node("Mul", (column, frequencies))
        return self.node("Cos", (angle,))[0], self.node("Sin", (angle,))[0]

    def mask(self, window: int) -> str:
        if window in self.masks:
            return self.masks[window]
        zero, one, first = self.weight(0, np.int64), self.weight(1, np.int64), self.weight([0], np.int64)
        (keep,) = self.node("Cast", ("attention_mask",), to=9)
        (visible,) = self.node("Unsqueeze", (keep, self.weight([1, 2], np.int64)))
        total, sequence = (
            self.node("Squeeze", (self.node("Shape", (name,), start=1, end=2)[0], first))[0]
            for name in ("attention_mask", "input_ids")
        )
        (past,) = self.node("Sub", (total, sequence))
        (keys,) = self.node("Range", (zero, total, one))
        (queries,) = self.node("Range", (past, total, one))
        (column,) = self.node("Unsqueeze", (queries, self.weight([1], np.int64)))
        (allowed,) = self.node("LessOrEqual", (keys, column))
        if window:
            (near,) = self.node("Less", (self.node("Sub", (column, keys))[0], self.weight(window, np.int64)))
            (allowed,) = self.node("And", (allowed, near))
        (self.masks[window],) = self.node("And", (visible, allowed))
        return self.masks[window]

    def graph(self) -> Graph:
        """A whole one, with logits, and sometimes outputs and inputs that nobody asked for."""
        self.bits = self.random.choice(_BITS)
        self.lookup(self.random.choice(WIDTHS), "input_ids")
        for _ in range(self.random.choice((1, 3, 6, 12, 20))):
            self.step()
        kind = self.random.randrange(8)
        last = self.some() if kind == 0 else self.product(self.norm(self.some()), self.random.choice((1, 40, 60, 65)))
        if kind == 1 and self.widths[last] > 1:
            self.split(last)
            last = self.nodes[-1].outputs[self.random.randrange(2)]
        for _ in range(self.random.choice((0, 0, 1, 3)) if kind == 2 else 0):
            self.step()  # of no use
        graph = Graph(Path(), tuple(self.nodes), self.weights, (*_INPUTS, *(self.states or ())), (), {}, {}, 23, {})
        made = [replace(state, name=output_of(state.name)) for state in self.states or ()]
        graph = replace(graph, outputs=tuple(made))
        graph = named(graph, last, self.widths[last])
        return self._with_others(graph) if self.random.random() < 0.2 else graph

    def _with_others(self, graph: Graph) -> Graph:
        made = [name for node in graph.nodes for name in node.outputs if name != "logits"]
        some = self.random.sample(made, min(self.random.choice((1, 2, 5)), len(made)))
        infos = [ValueInfo(name, np.dtype(np.float32), None) for name in some]
        self.random.shuffle(infos)
        others = tuple(ValueInfo(name, np.dtype(np.int64), ("batch", "n")) for name in ("token_type_ids", "of.no.use"))
        return replace(graph, inputs=graph.inputs + others, outputs=(*infos, *graph.outputs))


def named(graph: Graph, value: str, width: int) -> Graph:
    """The graph with this value as its logits."""
    swap = {value: "logits", "logits": "logits.before"}
    nodes = tuple(
        replace(
            n,
            inputs=tuple(swap.get(i, i) for i in n.inputs),
            outputs=tuple(swap.get(o, o) for o in n.outputs),
        )
        for n in graph.nodes
    )
    info = ValueInfo("logits", np.dtype(np.float32), ("batch", "tokens", width))
    states = {output_of(state.name) for state in graph.inputs if is_recurrent(state.name)}
    kept = tuple(output for output in graph.outputs if output.name in states)
    return replace(graph, nodes=nodes, outputs=(info, *kept), values={**graph.values, "logits": info})


def widths_of(graph: Graph) -> dict[str, int]:
    """Values [batch, tokens, width] of an export, by the shapes it states."""
    found = {}
    for node in graph.nodes:
        for name in node.outputs:
            shape = graph.values[name].shape if name in graph.values else None
            floats = name in graph.values and graph.values[name].dtype == np.float32
            if shape is not None and floats and len(shape) == 3 and isinstance(shape[2], int) and "rope" not in name:
                found[name] = shape[2]
    return found


def changed(graph: Graph, random_: random.Random) -> Graph:
    """A real graph with a few valid changes."""
    for _ in range(random_.choice((1, 1, 2, 3))):
        graph = _change(graph, random_)
    return graph


def _change(graph: Graph, r: random.Random) -> Graph:
    widths = widths_of(graph)
    composer = Composer(r, weights=dict(graph.weights), widths={})
    at = r.randrange(len(graph.nodes))
    made = {o for n in graph.nodes[: at + 1] for o in n.outputs}
    composer.widths = {n: w for n, w in widths.items() if n in made}
    if not composer.widths:
        return graph
    tag, kind = f"x{r.randrange(10**9)}", r.randrange(5)
    before = len(composer.weights)
    if kind == 0:  # a new value takes the place of one of its width, for some of those who read it
        old = composer.some()
        composer.step()
        new = [n for n in composer.widths if n not in made and composer.widths[n] == composer.widths[old]]
        swap = {old: new[-1]} if new else {}
    elif kind == 1:  # another value of this width takes its place
        old = composer.some()
        swap = {old: composer.some(composer.widths[old])}
    elif kind == 2:  # a part of a value, or all of it, becomes the result
        last = composer.some(composer.widths.get("logits"))
        if composer.widths[last] > 1 and r.random() < 0.3:
            composer.split(last)
            last = composer.nodes[-1].outputs[0]
        nodes, weights, names = _apart(composer, before, tag)
        rest = (*graph.nodes[: at + 1], *nodes, *graph.nodes[at + 1 :])
        whole = replace(graph, nodes=rest, weights={**graph.weights, **weights})
        return named(whole, names.get(last, last), composer.widths[last])
    elif kind == 3:  # lookups beside the first one
        old = next(iter(composer.widths))
        new = composer.lookup(
            composer.widths[old], r.choice(("input_ids", "input_ids", "input_ids", "position_ids", "token_type_ids"))
        )
        swap = {old: composer.value(composer.widths[old], "Add", (old, new))}
    else:  # nodes of no use
        composer.step()
        swap = {}
    nodes, weights, names = _apart(composer, before, tag)
    swap = {old: names.get(new, new) for old, new in swap.items()}
    rest = []
    for node in graph.nodes[at + 1 :]:
        moved = r.random() < 0.8 and node.op_type != "Attention"
        rest.append(replace(node, inputs=tuple(swap.get(i, i) for i in node.inputs)) if moved else node)
    info = {new: replace(graph.values[old], name=new) for old, new in swap.items() if old in graph.values}
    return replace(
        graph, nodes=(*graph.nodes[: at + 1], *nodes, *rest), weights={**graph.weights, **weights},
        values={**info, **graph.values},
    )  # fmt: skip


def _apart(composer: Composer, before: int, tag: str) -> tuple[list[Node], dict[str, np.ndarray], dict[str, str]]:
    """The composer's nodes and new weights with names that nothing else has."""
    weights = dict(list(composer.weights.items())[before:])
    names = {name: f"{tag}.{name}" for name in (*weights, *(o for n in composer.nodes for o in n.outputs))}
    nodes = [
        replace(
            n, name=f"{tag}.{n.name}", inputs=tuple(names.get(i, i) for i in n.inputs),
            outputs=tuple(names[o] for o in n.outputs),
        )
        for n in composer.nodes
    ]  # fmt: skip
    return nodes, {names[name]: array for name, array in weights.items()}, names


def graphs(seed: int, first: int, runs: int, real: list[Graph]) -> Iterator[tuple[int, Graph, random.Random]]:
    """The graphs number first..first + runs - 1 of a seed: every second one is a real one that was changed."""
    for number in range(first, first + runs):
        random_ = random.Random(f"{seed} {number}")
        if real and number % 2:
            yield number, changed(random_.choice(real), random_), random_
        else:
            yield number, Composer(random_, states=[]).graph(), random_


def through_a_file(graph: Graph, folder: Path) -> Graph:
    """The graph as the product reads it from a file; large weights are in one beside it."""
    data, tensors = bytearray(), []
    for name, array in graph.weights.items():
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        if len(tensor.raw_data) > 1024:
            place = {"location": "model.onnx.data", "offset": len(data), "length": len(tensor.raw_data)}
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in place.items())
        tensors.append(tensor)
    nodes = [
        onnx.helper.make_node(n.op_type, n.inputs, n.outputs, n.name, domain=n.domain, **n.attributes)
        for n in graph.nodes
    ]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(i.name, _ELEMENTS[i.dtype], i.shape) for i in infos]
        for infos in (graph.inputs, graph.outputs)
    )
    opsets = [onnx.helper.make_opsetid("", graph.opset), onnx.helper.make_opsetid(DOMAIN, 1)]
    whole = onnx.helper.make_graph(nodes, "fuzz", inputs, outputs, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(whole, opset_imports=opsets).SerializeToString())
    (folder / "model.onnx.data").write_bytes(data)
    return read_graph(folder, mapped=False)


_ELEMENTS = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}
