"""What a decoder carries from one call to the next: graph inputs, and the outputs that become them.

Keys and values grow with every token and can be cut back to any length. A recurrent state has one size, starts as
zeros, and cannot be cut back: it is of one place in the text. Names are those of onnxruntime-genai.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.artefacts.graph import Graph, ValueInfo
from export.contract.errors import InputError

KEYS_AND_VALUES, RECURRENT = "past_key_values.", "past_"
_LARGEST = 1 << 28  # numbers of one state


@dataclass(frozen=True)
class RecurrentState:
    """One state of a graph, float32 and zeros at the start."""

    input: str
    output: str
    shape: tuple[int, ...]  # with a batch of one


def output_of(name: str) -> str:
    """The output that becomes the input `name` of the next call."""
    if name.startswith(KEYS_AND_VALUES):
        return "present." + name.removeprefix(KEYS_AND_VALUES)
    return "present_" + name.removeprefix(RECURRENT)


def is_recurrent(name: str) -> bool:
    """Whether a graph input is a recurrent state."""
    grows = name.startswith(KEYS_AND_VALUES) and name.endswith((".key", ".value"))
    return name.startswith(RECURRENT) and not grows


def recurrent_states(graph: Graph) -> tuple[RecurrentState, ...]:
    """All of a graph's. Raises InputError on one without a fixed size or without its output."""
    outputs, found = {info.name for info in graph.outputs}, []
    for info in graph.inputs:
        if is_recurrent(info.name):
            state = RecurrentState(info.name, output_of(info.name), _shape(info))
            if state.output not in outputs:
                raise InputError(f"model.onnx: has an input {state.input}, but no output {state.output}")
            found.append(state)
    return tuple(found)


def _shape(info: ValueInfo) -> tuple[int, ...]:
    sizes = (info.shape or ())[1:]
    fixed = tuple(size for size in sizes if isinstance(size, int) and size > 0)
    if not sizes or len(fixed) != len(sizes) or math.prod(fixed) > _LARGEST:
        raise InputError(f"model.onnx: the state {info.name} has no fixed size")
    return (1, *fixed)
