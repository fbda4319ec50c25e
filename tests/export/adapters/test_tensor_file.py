"""safetensors files in plain numpy: as the package writes and reads them, and what is no whole one is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from export.contract.errors import InputError
from export.files.tensor_file import read_tensors, write_tensors

KINDS = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5), max_size=3)), max_size=5), st.data())
def test_both_ways_as_the_package(tmp_path_factory, shapes, data):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    tensors = {f"t{i}": np.asarray(rng.standard_normal(shape) * 9, kind) for i, (kind, shape) in enumerate(shapes)}
    write_tensors(folder / "own", tensors)
    save_file(tensors, folder / "theirs")
    for found in (
        load_file(folder / "own"),
        *(read_tensors(folder / name, 1 << 20, folder) for name in ("own", "theirs")),
    ):
        assert found.keys() == tensors.keys()
        for name, array in tensors.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_bfloat16_is_read_as_float32(tmp_path):
    wanted = torch.randn(7, 3).bfloat16()
    save_torch({"x": wanted}, tmp_path / "file")
    np.testing.assert_array_equal(read_tensors(tmp_path / "file", 1 << 20, tmp_path)["x"], wanted.float().numpy())


def packed(header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
FILES = {
    "empty": b"",
    "short": b"\0" * 7,
    "a long header": (2**62).to_bytes(8, "little") + b"{}",
    "no JSON": packed(b"{", b""),
    "nested": packed(b"[" * 100_000, b""),
    "no object": packed([1], b""),
    "no entry": packed({"x": 1}),
    "a kind": packed({"x": {**ENTRY, "dtype": "F8"}}),
    "a list for a kind": packed({"x": {**ENTRY, "dtype": ["F32"]}}),
    "a shape": packed({"x": {**ENTRY, "shape": [-4]}}),
    "a flag": packed({"x": {**ENTRY, "shape": [True]}}),
    "a huge shape": packed({"x": {**ENTRY, "shape": [2**39] * 8}}),
    "another size": packed({"x": {**ENTRY, "shape": [3]}}),
    "outside": packed({"x": {**ENTRY, "data_offsets": [16, 32]}}),
    "backwards": packed({"x": {**ENTRY, "shape": [0], "data_offsets": [16, 0]}}),
    "overlapping": packed({"x": ENTRY, "y": ENTRY}),
    "a rest": packed({"x": ENTRY}, b"\0" * 17),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_whole_file(tmp_path, case):
    (tmp_path / "file").write_bytes(FILES[case])
    with pytest.raises(InputError) as refused:
        read_tensors(tmp_path / "file", 1 << 20, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_too_large(tmp_path):
    write_tensors(tmp_path / "file", {"x": np.zeros(1000, np.float32)})
    with pytest.raises(InputError, match="larger"):
        read_tensors(tmp_path / "file", 1000, tmp_path)
