"""Nested codes read at a width: the bits of a plain folder of that width, and nothing read of the planes behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.reader import read_graph
from export.artefacts.widths import at_width, full_width, in_memory, shape_at, widths_of
from export.contract.errors import InputError
from export.contract.formats.nested import NestedLayout
from export.contract.packing import pack
from export.model_folder import write_model_folder
from runtime_py.load import open_model
from runtime_py.widths.schedule import Schedule, confident_at
from tests.runtime_py.tiny import _CONFIG, write_tiny
from toolchain.pipeline.published_shapes import SHAPES
from toolchain.pipeline.random import RandomCheckpoint
from toolchain.settings.execution import Widths
from toolchain.settings.quantize import QuantizeSettings

NESTED = QuantizeSettings(bits=4, nested=2, rows_per_codebook=8)
TOKENS = np.array([5, 9, 2, 700, 31, 8, 9], np.int64)


class _Plain(RandomCheckpoint):
    """Codes and levels of one width of a nested checkpoint, as a plain one has them; all else is the same."""

    def __init__(self, folder: Path, nested: RandomCheckpoint, width: int) -> None:
        super().__init__("tiny", folder, QuantizeSettings(bits=width, rows_per_codebook=8))
        self._nested, self._width = nested, width

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        record = self._nested.records[record_name]
        if record.scheme != "nested" or suffix not in (".codes", ".codebook"):
            return super().tensor(record_name, suffix)
        layout = record.matrix_layout()
        assert isinstance(layout, NestedLayout)
        parts = [self._nested.tensor(record_name, f".{p}") for p in ("codes", "planes", "codebook")]
        if suffix == ".codebook":
            return np.ascontiguousarray(parts[2][:, None, layout.entries_of(self._width)])
        return pack(layout.codes_at(self._width, *parts[:2]), self._width)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """The nested folder (0), and plain ones of its widths."""
    root = tmp_path_factory.mktemp("nested")
    found = {}
    with mock.patch.dict(SHAPES, {"tiny": {**_CONFIG}}):
        for name in ("source", "plain"):
            (root / name).mkdir()
        nested = RandomCheckpoint("tiny", root / "source", NESTED)
        found[0] = root / "nested"
        found[0].mkdir()
        write_model_folder(nested, found[0])
        for width in (2, 3, 4):
            found[width] = root / f"plain-{width}"
            found[width].mkdir()
            write_model_folder(_Plain(root / "plain", nested, width), found[width])
    return found


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_width_is_the_plain_folder_of_that_width_bit_for_bit(folders, width, mapped):
    found = []
    for folder, bits in ((folders[0], width), (folders[width], None)):
        runner, why = open_model(folder, bits=bits, mapped=mapped, threads=2)
        assert not why
        state = runner.new_state()
        found.append(np.concatenate([runner.forward(state, TOKENS), runner.forward(state, [3])]))
    np.testing.assert_array_equal(found[0].view(np.uint32), found[1].view(np.uint32))


def test_all_bits_are_the_full_width_and_fewer_hold_less(folders):
    whole, _ = open_model(folders[0], mapped=False)
    runners = {bits: open_model(folders[0], bits=bits, mapped=False)[0] for bits in (2, 3, 4)}
    logits = [runner.forward(runner.new_state(), TOKENS) for runner in (whole, runners[4])]
    np.testing.assert_array_equal(*logits)
    held = [runner.held_bytes() for runner in runners.values()]
    assert held[0] < held[1] < held[2] == whole.held_bytes()
    read = [runner.bytes_per_token for runner in runners.values()]
    assert read[0] < read[1] < read[2]
    assert [runner.bits for runner in runners.values()] == [2, 3, None]


def test_the_interpreter_reads_widths_too(folders):
    floats, _ = open_model(folders[0], "float32", bits=3)
    plain, _ = open_model(folders[3], "float32")
    np.testing.assert_array_equal(floats.forward(floats.new_state(), TOKENS), plain.forward(plain.new_state(), TOKENS))


def test_graphs_of_several_widths_share_what_is_the_same(folders):
    graph = read_graph(folders[0], mapped=False)
    assert widths_of(graph) == range(2, 5) and full_width(graph) == 4
    low, high = in_memory(graph, [2, 4])
    for bits, one in ((2, low), (4, high)):
        expected, shapes = at_width(graph, bits), at_width(graph, bits, shape_at)
        assert one.weights.keys() == expected.weights.keys() == shapes.weights.keys()
        for name, array in one.weights.items():
            np.testing.assert_array_equal(array, expected.weights[name])
            assert (array.dtype.itemsize, array.shape) == (shapes.weights[name].itemsize, shapes.weights[name].shape)
    shared = low.weights.keys() & high.weights.keys()
    assert shared and all(low.weights[name] is high.weights[name] for name in shared)


def test_layers_that_share_codes_and_names_that_look_made_are_kept_apart(folders):
    """Codes that two nodes read with other attributes are two matrices; no weight of the file is ever replaced."""
    graph = read_graph(folders[0])
    first = next(i for i, node in enumerate(graph.nodes) if node.op_type == "NestedMatMul")
    node = graph.nodes[first]
    other = replace(node, name="other", outputs=("other",), attributes={**node.attributes, "rows_per_scale": 64})
    weights = {**graph.weights, "#0.2.codes": np.zeros(3, np.float32), "#0.2.codes#": np.ones(1, np.float32)}
    changed = replace(graph, nodes=(*graph.nodes[: first + 1], other, *graph.nodes[first + 1 :]), weights=weights)
    for one in (at_width(changed, 2), *in_memory(changed, [2])):
        assert one.nodes[first].inputs[1:3] != one.nodes[first + 1].inputs[1:3]
        assert one.nodes[first].inputs[1] == "#0.2.codes##"
        np.testing.assert_array_equal(one.weights["#0.2.codes"], 0)
        np.testing.assert_array_equal(one.weights["#0.2.codes##"], graph.weights[node.inputs[1]])


def test_what_is_not_there_is_refused(folders):
    for folder, bits, told in (
        (0, 5, "5 bits are not among the widths of its codes, 2 to 4"),
        (0, 1, "2 to 4"),
        (3, 3, "--nested"),
    ):
        with pytest.raises(InputError, match=told):
            open_model(folders[folder], bits=bits)


def test_a_schedule_is_each_width_in_turn_at_one_cache(folders):
    """Logits, to the bit, of engines of each width that are called by hand; several texts at different steps, too."""
    scheduled, _ = open_model(folders[0], bits=Schedule.read("prefill=4,0=3,2=2"), threads=2)
    engines = {bits: open_model(folders[0], bits=bits, threads=2)[0] for bits in (2, 3, 4)}
    state, other = scheduled.new_state(), engines[4].new_state()
    expected = [engines[4].forward(other, TOKENS, last_only=True)]
    found = [scheduled.forward(state, TOKENS, last_only=True)]
    for token, bits in ((7, 3), (8, 3), (9, 2), (10, 2)):
        assert scheduled.width_of(state) == bits
        expected.append(engines[bits].forward(other, [token]))
        found.append(scheduled.forward(state, [token]))
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    assert scheduled.rewind(state, len(TOKENS) + 1) == len(TOKENS) + 1 and scheduled.width_of(state) == 3
    np.testing.assert_array_equal(scheduled.forward(state, [8]), expected[2])
    fresh = scheduled.new_state()
    scheduled.forward(fresh, TOKENS)
    together = scheduled.step([state, fresh], [9, 7])
    np.testing.assert_array_equal(together[0], expected[3][-1])
    np.testing.assert_array_equal(together[1], expected[1][-1])
    assert [scheduled.bytes_of(bits) for bits in (2, 3, 4)] == [one.bytes_per_token for one in engines.values()]
    assert scheduled.held_bytes() < sum(one.held_bytes() for one in engines.values())


def test_a_confident_token_ends_the_wide_ones(folders):
    scheduled, _ = open_model(folders[0], bits=Schedule.read("0=4,confident=2"), threads=1)
    state = scheduled.new_state()
    scheduled.forward(state, TOKENS)
    chances = []
    for token in range(40):
        expected = 2 if state.narrow_from is not None else 4
        assert scheduled.width_of(state) == expected
        chances = list(state.chances)
        scheduled.forward(state, [token + 20])
    assert state.narrow_from is not None and confident_at(state.chances)
    assert state.narrow_from == len(state.chances) - 1 or not chances


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "0=9",
        "1=4",
        "0=4,0=3",
        "0=4,00=3",
        "prefill=4",
        "0=4,x=2",
        "0=4,-1=2",
        "0=4,confident=",
        "0=44",
        "0=4,,",
        "",
    ],
)
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(InputError, match="--schedule is prefill=WIDTH"):
        Schedule.read(text)
    with pytest.raises(InputError, match="--schedule is prefill=WIDTH"):
        Widths(schedule=text).reading()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 500), st.integers(1, 8), max_size=6), st.integers(1, 8), st.integers(1, 8))
def test_the_width_of_a_step_is_that_of_the_last_entry_up_to_it(later, first, prefill):
    steps = {0: first, **later}
    made = Schedule.read(",".join([f"prefill={prefill}", *(f"{step}={width}" for step, width in steps.items())]))
    for step in range(0, 600, 7):
        assert made.width(step) == steps[max(known for known in steps if known <= step)]
    assert made.widths == tuple(sorted({prefill, *steps.values()}))


_TOUCH = """
import sys, ctypes, mmap, numpy as np
from export.artefacts.reader import read_graph
from export.artefacts.widths import at_width
from pathlib import Path
graph = read_graph(Path(sys.argv[1]))
bits, page = int(sys.argv[2]), mmap.PAGESIZE
protect = ctypes.CDLL(None).mprotect
count = 0
for node in graph.nodes:
    if node.op_type == "NestedMatMul":
        behind = graph.weights[node.inputs[2]][bits - 2:]
        first = -(-behind.ctypes.data // page) * page
        size = (behind.ctypes.data + behind.nbytes) // page * page - first
        if size > 0:
            assert protect(ctypes.c_void_p(first), ctypes.c_size_t(size), 0) == 0
            count += size
made = at_width(graph, bits)
print(count, sum(int(a.sum()) for n, a in made.weights.items() if n.startswith("#")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("bits", [2, 3])
def test_planes_behind_the_width_are_not_touched(tmp_path, bits):
    """The pages that lie inside those planes may not be read at all: whoever does ends by a signal."""
    folder = write_tiny(tmp_path / "nested", {}, NESTED, hidden_size=256, intermediate_size=1024)
    run = [sys.executable, "-c", _TOUCH, str(folder)]
    done = subprocess.run([*run, str(bits)], capture_output=True, text=True, check=True)
    guarded, _ = map(int, re.findall(r"\d+", done.stdout))
    assert guarded > 1 << 16
