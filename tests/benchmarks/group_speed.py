"""Decode and prefill speed of group-scaled codes beside row-scaled ones of the same width, interleaved.

python -m tests.benchmarks.group_speed [BITS]

The shape is TinyLlama 1.1B's, four blocks of it, with random codes; the head is left as it is. Decode is also given at
equal bytes: group scales make a token read more, and memory is what decoding waits for.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.contract.formats.groups import GROUP_MATMUL, MINIMA, ONE_ZERO, ZEROS, GroupsLayout
from runtime_py.engine.engine import Engine
from toolchain.pipeline.published_shapes import SHAPES
from toolchain.pipeline.random import write_random_folder
from toolchain.settings.quantize import QuantizeSettings

_ROUNDS, _TOKENS, _BLOCKS, _PROMPT = 15, 6, 4, np.arange(3, 131)
_KINDS = {"one zero point": ONE_ZERO, "zero points": ZEROS, "minima": MINIMA}


def grouped(graph: Graph, group_size: int, offsets: int) -> Graph:
    """The graph with random group-scaled codes for those of its blocks."""
    weights, nodes, rng = dict(graph.weights), [], np.random.default_rng(0)
    for node in graph.nodes:
        if node.op_type == CODEBOOK_MATMUL and node.outputs != ("logits",):
            old = node.layout()
            layout = GroupsLayout(old.bits, old.K, old.N, group_size, offsets)
            names = [f"{node.name}.{part}" for part in layout.parts()]
            weights |= {name: layout.random(part, rng, 0.02) for name, part in zip(names, layout.parts())}
            inputs = (node.inputs[0], *names)
            node = replace(node, op_type=GROUP_MATMUL, inputs=inputs, attributes=layout.attributes())
        nodes.append(node)
    read = {name for node in nodes for name in node.inputs}
    return replace(graph, nodes=tuple(nodes), weights={n: a for n, a in weights.items() if n in read})


def main() -> None:
    bits = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    SHAPES["part"] = {**SHAPES["tinyllama-1.1b"], "num_hidden_layers": _BLOCKS}
    with tempfile.TemporaryDirectory() as folder:
        write_random_folder("part", Path(folder) / "m", QuantizeSettings(bits=bits), False, True)
        graph = read_graph(Path(folder) / "m", mapped=False)
    engines = {"row scales": Engine(graph)}
    for size in (32, 64, 128):
        for name, offsets in _KINDS.items():
            engines[f"groups of {size}, {name}"] = Engine(grouped(graph, size, offsets))
    states = {name: engine.new_state() for name, engine in engines.items()}
    for name, engine in engines.items():
        engine.forward(states[name], _PROMPT, last_only=True)
        engine.forward(states[name], [7])
    decode: dict[str, list[float]] = {name: [] for name in engines}
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            for _ in range(_TOKENS):
                engine.forward(states[name], [7])
            middle = time.perf_counter()
            engine.forward(engine.new_state(), _PROMPT, last_only=True)
            decode[name].append((middle - start) / _TOKENS)
            prefill[name].append((time.perf_counter() - middle) / len(_PROMPT))
    base, engine = "row scales", engines["row scales"]
    print(f"{bits} bits, {engine.instruction_set}, {engine.threads} threads; times beside row scales, medians of pairs")
    print("| | MB a token | decode | at equal bytes | prefill |\n|---|---|---|---|---|")
    for name, engine in engines.items():
        slower, filling = (float(np.median(np.divide(times[name], times[base]))) for times in (decode, prefill))
        size = engine.bytes_per_token / engines[base].bytes_per_token
        print(f"| {name} | {engine.bytes_per_token / 1e6:.1f} | {slower:.3f} | {slower / size:.3f} | {filling:.3f} |")


if __name__ == "__main__":
    main()
