"""The graph reader on tampered folders: one clear line each, never a read outside the folder."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnx
import pytest

from export.artefacts.reader import read_graph
from export.contract.errors import InputError


@pytest.fixture
def folder(demo_folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(demo_folder, copy)
    return copy


def tamper(folder, change):
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def external(model):
    return next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)


def set_entry(key, value):
    def change(model):
        for entry in external(model).external_data:
            if entry.key == key:
                entry.value = value

    return change


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../b", "", "..", "sub/model.onnx.data", "x\0y"])
def test_locations_outside_the_folder_are_refused(folder, location):
    tamper(folder, set_entry("location", location))
    with pytest.raises(InputError, match="is refused"):
        read_graph(folder)


def test_link_out_of_the_folder_is_refused(folder, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(folder / "model.onnx.data", outside)
    os.symlink(outside, folder / "model.onnx.data")
    with pytest.raises(InputError, match="link out of the folder"):
        read_graph(folder)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("offset", "999999999999", "outside its file"),
        ("offset", "-8", "outside its file"),
        ("offset", "one", "must be whole numbers"),
        ("length", "4", "its shape needs"),
        ("length", "-1", "its shape needs"),
    ],
)
def test_offsets_and_lengths_are_checked(folder, key, value, message):
    tamper(folder, set_entry(key, value))
    with pytest.raises(InputError, match=message):
        read_graph(folder)


def test_impossible_shapes(folder):
    def huge(model):
        external(model).dims[:] = [2**40, 2**40]

    tamper(folder, huge)
    with pytest.raises(InputError, match="impossible shape"):
        read_graph(folder)


def test_truncated_data_file(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="outside its file"):
        read_graph(folder)
    data.unlink()
    with pytest.raises(InputError, match=r"model\.onnx\.data: this file is missing"):
        read_graph(folder)


def test_attributes_that_do_not_fit_the_codes(folder):
    def change(model):
        node = next(n for n in model.graph.node if n.op_type == "CodebookMatMul")
        for attribute in node.attribute:
            if attribute.name == "K":
                attribute.i = 10**6

    tamper(folder, change)
    with pytest.raises(InputError, match="codes is uint8"):
        read_graph(folder)


def test_cycles_and_unknown_operators(folder):
    def cycle(model):
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]

    tamper(folder, cycle)
    with pytest.raises(InputError, match="which nothing before it makes"):
        read_graph(folder)

    from runtime_py.reference.session import Session

    def unknown(model):
        node = next(n for n in model.graph.node if n.op_type == "Cos")
        node.op_type = "Tan"
        cycle_input = model.graph.node[0]
        cycle_input.input[0] = "position_ids"

    tamper(folder, unknown)
    with pytest.raises(InputError, match="operator ai.onnx::Tan is not supported"):
        Session(folder)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0b" * 50, bytes(range(256)) * 2])
def test_garbage_is_refused(folder, content):
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InputError):
        from runtime_py.reference.session import Session

        Session(folder)


def test_weights_read_into_memory_are_those_of_the_mapped_file(demo_folder):
    mapped, read = read_graph(demo_folder), read_graph(demo_folder, mapped=False)
    assert mapped.weights.keys() == read.weights.keys()
    for name, array in mapped.weights.items():
        assert not read.weights[name].flags.writeable
        np.testing.assert_array_equal(array, read.weights[name])
