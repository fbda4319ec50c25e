"""Quantized checkpoints of format version 1, made by the tool as it was then: they load, and nothing changes.

tests/former_folders holds one of each weight format: a random Llama of two blocks, 32 wide, 256 tokens. codebook has
coded scales, a low-rank term and outliers; trellis the standard levels; razored rotated weights and a 4-bit cache.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from export.artefacts.checkpoint import QuantizedCheckpoint, read_shard_records
from export.artefacts.records import TensorRecord
from export.contract.errors import InputError
from export.model_folder import write_model_folder
from runtime_py.reference.session import Session

FOLDERS = Path(__file__).parents[2] / "former_folders"
# sha256 of the model.onnx.data that the tool of then wrote.
WEIGHTS = {
    "codebook": "9aab2ab31247a3156baccc144d9566967bbf8706b3f815c05d400e139e232f44",
    "trellis": "298f0a46b31d0512c973f281e0dc87ad78c00785152e88a0969a6d43844886a7",
    "vectors": "58c01767053110af79b340884e9fc570df6ab0032a9c1c21082366b7d7dc0e40",
    "razored": "62789f1557a68e66927b7363b474081bcd2871aef8272cf028ea77d5e57d2150",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_logits_are_those_of_then(name, tmp_path):
    checkpoint = QuantizedCheckpoint(FOLDERS / name)
    assert checkpoint.manifest["format_version"] == 1
    write_model_folder(checkpoint, tmp_path)
    assert hashlib.sha256((tmp_path / "model.onnx.data").read_bytes()).hexdigest() == WEIGHTS[name]
    session = Session(tmp_path)
    logits = session.forward(session.new_state(), np.arange(3, 25) * 11 % 256)
    expected = np.load(FOLDERS / name / "expected.npy")
    # the same operations in float32, by another numpy or processor perhaps: sums in another order
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", WEIGHTS)
def test_records_go_through_json_and_count_the_same_bytes(name):
    for record in read_shard_records(FOLDERS / name / "block-00000.safetensors"):
        again = TensorRecord.from_json(json.loads(json.dumps(record.to_json())))
        assert again == record
        if not record.is_dense:
            assert record.bytes == sum(part.bytes for part in record.parts.values())


@pytest.mark.parametrize(
    "change",
    [{"scheme": "magic"}, {"scheme": "object"}, {"group_size": 5.5}, {"extra": 1}, {"bits": None}, {"shape": [4]}],
)
def test_impossible_former_records_are_refused(change):
    record = {"name": "w", "scheme": "codebook", "shape": [4, 64], "bytes": 100, "bits": 3, **change}
    with pytest.raises((TypeError, ValueError)):
        TensorRecord.from_json(record)


WRONG = (None, True, -1, 2**60, 1.5, "x", "object", "float64", [], {}, [None], {"how": "codes"})


def places(data, path=()):
    """Every place in nested JSON."""
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_record_with_anything_wrong_is_refused_or_harmless(name, tmp_path):
    """Each field of each record by each wrong value: refused, or a record that reads as the same matrix."""
    for record in read_shard_records(FOLDERS / name / "block-00000.safetensors")[:1]:
        right = json.loads(json.dumps(record.to_json()))
        for path in list(places(right))[1:]:
            for wrong in WRONG:
                changed = json.loads(json.dumps(right))
                place = changed
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = wrong
                try:
                    found = TensorRecord.from_json(changed)
                except (AttributeError, KeyError, TypeError, ValueError):  # what read_shard_records turns into one line
                    continue
                assert (found.shape, found.layout, found.parts) == (record.shape, record.layout, record.parts), path


def test_an_unknown_version_is_refused(tmp_path):
    (tmp_path / "athena.json").write_text(json.dumps({"format_version": 3}))
    with pytest.raises(InputError, match="format_version is 3, this tool reads 1 and 2"):
        QuantizedCheckpoint(tmp_path)
