"""Graphs with group-scaled codes: hostile ones are refused in one line, wrong tables of steps by the verifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from runtime_py.engine import program
from runtime_py.engine.engine import Engine
from runtime_py.engine.layout.products import MOST_TOKENS
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.group_matrix import GroupMatrix, group_record
from runtime_py.engine.steps import table as op
from runtime_py.engine.verify import verifier
from runtime_py.load import open_model
from tests.runtime_py.engine.test_apart import runs_both_ways, same
from tests.runtime_py.engine.test_verifier import mutated
from tests.toolchain.source.gguf_models import write_gguf
from toolchain.pipeline.packaging import package_checkpoint
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings

TYPES = {"token_embd": "Q8_0", "ffn_down": "Q4_1", "attn_q": "Q5_0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    path = write_gguf(
        root / "m.gguf", type_of=lambda name: next((t for part, t in TYPES.items() if part in name), "Q4_0")
    )
    settings = QuantizeSettings(method="keep", embedding_bits=16)
    checkpoint = quantize_model(str(path), root / "quantized", settings, CalibrationChoice(), quiet=True)
    return package_checkpoint(checkpoint, root / "folder", quiet=True)


def test_texts_pass_together(folder):
    """Every token, and every guessed one, has the bits that its text gets alone."""
    model, why = open_model(folder)
    assert not why and model.most_together == MOST_TOKENS
    same(model, [[5, 6, 7], [8] * 40, []])
    together, alone, _, _ = runs_both_ways(model, [[5, 6], [9] * 30], [[8, 9, 10, 11], [12]])
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one, other)


def written(folder: Path, to: Path, change) -> Path:
    """The folder's graph with all weights inside, changed by change(node, initializers by name)."""
    model = onnx.load(folder / "model.onnx")
    node = next(n for n in model.graph.node if n.op_type == "GroupMatMul" and "down_proj" in n.name)
    stored = {t.name: t for t in model.graph.initializer}
    change(node, stored)
    to.mkdir()
    onnx.save(model, to / "model.onnx")
    return to


def with_attribute(name, value):
    def change(node, stored):
        attribute = next(a for a in node.attribute if a.name == name)
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return change


def without(name):
    def change(node, stored):
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)

    return change


def with_part(number, edit):
    def change(node, stored):
        tensor = stored[node.input[number]]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(edit(numpy_helper.to_array(tensor))), tensor.name))

    return change


def filled(value):
    return lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, value, a).astype(a.dtype)


CODES, SCALE, OFFSET = 1, 2, 3
HOSTILE = {
    "no columns in a group": with_attribute("group_size", 0),
    "a negative group": with_attribute("group_size", -32),
    "a group beyond all numbers": with_attribute("group_size", 2**62),
    "groups of another count": with_attribute("group_size", 16),
    "groups that are wider": with_attribute("group_size", 64),
    "a group of text": with_attribute("group_size", "32"),
    "a group of floats": with_attribute("group_size", 32.0),
    "no group": without("group_size"),
    "offsets of no kind": with_attribute("offsets", 3),
    "zero points that are minima": with_attribute("offsets", 1),
    "one zero point that is minima": with_attribute("offsets", 0),
    "no bits": with_attribute("bits", 0),
    "nine bits": with_attribute("bits", 9),
    "more bits than are stored": with_attribute("bits", 5),
    "no rows": with_attribute("N", 0),
    "rows that nobody stores": with_attribute("N", 2**31 - 1),
    "columns that nobody stores": with_attribute("K", 2**31 - 1),
    "rows and columns that overflow": with_attribute("N", 2**63 - 1),
    "codes of fewer rows": with_part(CODES, lambda a: a[:-1]),
    "codes of another type": with_part(CODES, lambda a: a.view(np.int8)),
    "scales of fewer groups": with_part(SCALE, lambda a: a[:, :-1]),
    "scales in one row": with_part(SCALE, lambda a: a.reshape(1, -1)),
    "scales of another type": with_part(SCALE, lambda a: a.astype(np.float64)),
    "scales that are infinite": with_part(SCALE, filled(np.inf)),
    "scales that are no numbers": with_part(SCALE, filled(np.nan)),
    "minima of fewer rows": with_part(OFFSET, lambda a: a[1:]),
    "one minimum": with_part(OFFSET, lambda a: a[:1, :1]),
    "minima that are infinite": with_part(OFFSET, filled(-np.inf)),
    "minima that are zero points": with_part(OFFSET, lambda a: np.zeros(a.shape, np.uint8)),
    "minima without dimensions": with_part(OFFSET, lambda a: a.reshape(-1)[0]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graphs_are_refused_in_one_line(folder, tmp_path, case):
    with pytest.raises(InputError) as caught:
        read_graph(written(folder, tmp_path / "hostile", HOSTILE[case]))
    assert "\n" not in str(caught.value) and "down_proj" in str(caught.value)


def test_zero_points_out_of_range_are_refused(folder, tmp_path):
    def change(node, stored):
        with_attribute("offsets", 1)(node, stored)
        with_part(OFFSET, lambda a: np.full(a.shape, 200, np.uint8))(node, stored)

    with pytest.raises(InputError, match="offset holds a zero point above 16"):
        read_graph(written(folder, tmp_path / "hostile", change))


def spied(monkeypatch, folder: Path) -> tuple:
    given: list[tuple] = []
    monkeypatch.setattr(program, "verify", lambda *a: given.append(a) or verifier.verify(*a))
    Engine(read_graph(folder), 1)
    return given[0]


@pytest.mark.parametrize("change", [1, -4, 64, 1 << 30, -(1 << 30)])
def test_wrong_addresses_are_caught(folder, monkeypatch, change):
    plan, *rest = spied(monkeypatch, folder)
    fixed = {cell for cells in plan.externals.values() for cell in cells}
    addresses, tried = ("matrix", "quant", "scales", "high", "starts", "shares", "out"), 0
    for row, step in enumerate(plan.steps.tolist()):
        for name in set(addresses) & set(op.FIELDS[step[op.OPERATION]]):
            column = op.ARGUMENTS + op.FIELDS[step[op.OPERATION]].index(name)
            if (row, column) in fixed or step[column] == 0:
                continue
            if (name, change) == ("shares", 64):  # another text's place: wrong, but nobody else's memory
                continue
            plan.steps[row, column] += change
            with pytest.raises(Unplannable):
                verifier.verify(plan, *rest)
            plan.steps[row, column] -= change
            tried += 1
    verifier.verify(plan, *rest)
    assert tried > 60


@pytest.mark.parametrize("name, value", [
    ("group", 0), ("group", 16), ("group", 64), ("group", 33), ("group", -32), ("width", 4), ("width", 1024 + 0x16),
    ("rows", 1 << 20), ("row_bytes", 8),
])  # fmt: skip
def test_numbers_that_do_not_fit_are_caught(folder, monkeypatch, name, value):
    plan, *rest = spied(monkeypatch, folder)
    row = next(i for i, step in enumerate(plan.steps) if step[op.OPERATION] == op.GROUP_MATMUL)
    column = op.ARGUMENTS + op.FIELDS[op.GROUP_MATMUL].index(name)
    plan.steps[row, column] = value
    with pytest.raises(Unplannable):
        verifier.verify(plan, *rest)


@pytest.mark.parametrize("name, value", [
    ("offset_kind", 3), ("offset_kind", -1), ("scale", 8), ("scale", 0), ("offset", 8), ("columns", 1 << 20),
    ("rows", 1 << 20), ("width", 0), ("width", 1024), ("width", 1024 + 0x154), ("width", 1024 + 0x94),
    ("scale_rows", 2), ("book", 8), ("blocks", -1), ("bits", 5),
])  # fmt: skip
def test_records_that_do_not_fit_are_caught(folder, monkeypatch, name, value):
    plan, *rest = spied(monkeypatch, folder)
    row = next(i for i, step in enumerate(plan.steps) if step[op.OPERATION] == op.GROUP_MATMUL)
    address = plan.steps[row, op.ARGUMENTS + op.FIELDS[op.GROUP_MATMUL].index("matrix")]
    record = next(a for a in plan.constants if a.ctypes.data == address)
    place = GroupMatrix.names().index(name)
    if record[place] == value:
        pytest.skip("this is its value")
    record[place] = value
    with pytest.raises(Unplannable):
        verifier.verify(plan, *rest)


def test_products_of_other_codes_may_stand_beside_them(folder, monkeypatch):
    """One step for each product and lookup; sums of the activations are made where they are quantized."""
    plan, *_ = spied(monkeypatch, folder)
    kinds = plan.steps[:, op.OPERATION].tolist()
    assert kinds.count(op.GROUP_MATMUL) == 2 * 7 + 1 and kinds.count(op.EMBED_GROUPS) == 1
    assert kinds.count(op.QUANTIZE) == 2  # the attention's results: all else is quantized by the step that makes it


@pytest.mark.long
def test_changed_tables_that_pass_touch_no_guard_page(folder):
    mutated(folder, 400)


def test_a_record_keeps_what_it_needs_alive():
    layout_arrays = [np.zeros((4, 32), np.uint8), np.ones((4, 2), np.float16), np.full((1, 1), 8, np.uint8)]
    from export.contract.formats.groups import ONE_ZERO, GroupsLayout

    row, alive = group_record(GroupsLayout(4, 64, 4, 32, ONE_ZERO), *layout_arrays)
    found = GroupMatrix.of(row.tolist())
    assert {found.codes, found.scale} <= {a.ctypes.data for a in alive} and found.groups == 2 and found.zero == 8
