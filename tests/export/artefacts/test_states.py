"""Recurrent states of a graph: found by their names, refused without a size or an output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.artefacts.graph import Graph, ValueInfo
from export.artefacts.states import is_recurrent, output_of, recurrent_states
from export.contract.errors import InputError
from runtime_py.load import _runner


def graph(shape, output="present_conv.0") -> Graph:
    inputs = (ValueInfo("input_ids", np.dtype(np.int64), ("batch_size", "sequence_length")),
              ValueInfo("past_key_values.0.key", np.dtype(np.float32), ("b", 1, "past", 4)),
              ValueInfo("past_conv.0", np.dtype(np.float32), shape))  # fmt: skip
    outputs = (ValueInfo("logits", np.dtype(np.float32), ("b", "s", 8)), ValueInfo(output, None, None))
    return Graph(Path(), (), {}, inputs, outputs, {info.name: info for info in (*inputs, *outputs)}, {}, 23, {})


def test_names():
    assert output_of("past_key_values.3.value") == "present.3.value"
    assert output_of("past_conv.12") == "present_conv.12"
    assert output_of("past_key_values.0.conv_state") == "present.0.conv_state"
    names = ("past_conv.0", "past_key_values.0.conv_state", "past_key_values.0.recurrent_state")
    assert all(map(is_recurrent, names))
    assert not any(map(is_recurrent, ("past_key_values.0.key", "past_key_values.11.value", "input_ids")))


def test_a_state_has_a_batch_of_one():
    (state,) = recurrent_states(graph(("batch_size", 32, 3)))
    assert (state.input, state.output, state.shape) == ("past_conv.0", "present_conv.0", (1, 32, 3))


@pytest.mark.parametrize(
    "shape", [None, (), ("b",), ("b", 32, "s"), ("b", 0, 3), ("b", 1 << 20, 1 << 20), ("b", -1, 3)]
)
def test_a_state_without_a_size_is_refused(shape):
    with pytest.raises(InputError, match=r"the state past_conv\.0 has no fixed size"):
        recurrent_states(graph(shape))


def test_a_state_without_its_output_is_refused():
    with pytest.raises(InputError, match=r"an input past_conv\.0, but no output present_conv\.0"):
        recurrent_states(graph(("b", 32, 3), output="present_conv.1"))


def test_a_state_that_nothing_makes_is_refused_at_the_latest_when_it_runs():
    runner, why = _runner(graph(("b", 32, 3)), "int8", 1, ())
    assert "the state present_conv.0" in why
    with pytest.raises(InputError):
        runner.forward(runner.new_state(), [1, 2])
