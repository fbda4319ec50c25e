"""Reading checkpoints: every way a folder can be wrong ends in one line that names what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.contract.errors import InputError
from toolchain.source.checkpoint import SourceModel, resolve


@pytest.fixture
def copy(demo_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(demo_model, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    return folder


def shard(folder):
    """Split the single file into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, chosen in parts.items():
        save_file({n: tensors[n] for n in chosen}, folder / name)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {n: name for name, chosen in parts.items() for n in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_sharded_equals_single(demo_model, copy):
    shard(copy)
    single, sharded = SourceModel(demo_model), SourceModel(copy)
    assert single.names() == sharded.names()
    for name in single.names():
        assert torch.equal(single.tensor(name), sharded.tensor(name))


def test_missing_shard(copy):
    shard(copy)
    (copy / "b.safetensors").unlink()
    with pytest.raises(InputError, match="b.safetensors: this shard is missing"):
        SourceModel(copy)


def test_tensor_missing_from_its_shard(copy):
    index = shard(copy)
    index["weight_map"]["model.extra.weight"] = "a.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.extra\.weight is missing"):
        SourceModel(copy)


def test_index_cannot_point_outside(copy):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    with pytest.raises(InputError, match="must be a plain file name"):
        SourceModel(copy)


def test_truncated_file(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        SourceModel(copy)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"{}", (2**63).to_bytes(8, "little") + b"{}"])
def test_garbage_file(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a complete safetensors file"):
        SourceModel(copy)


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        SourceModel(copy)


def test_pickle_is_refused_with_the_conversion(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*not read.*save_pretrained"):
        SourceModel(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_weights_name_the_tensor(copy, value):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, copy / "model.safetensors")
    source = SourceModel(copy)
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinite"):
        source.tensor("model.layers.2.mlp.up_proj.weight")


def test_wrong_shape_names_both(copy):
    with pytest.raises(InputError, match=r"has shape \[1536, 192\], config.json asks for \[1536, 65\]"):
        SourceModel(copy).tensor("model.embed_tokens.weight", (1536, 65))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", '{"a": ' + "[" * 100000])
def test_broken_config(copy, text):
    (copy / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json"):
        SourceModel(copy)


def test_unknown_names():
    with pytest.raises(InputError, match="no such folder"):
        resolve("./does/not/exist")
    with pytest.raises(InputError, match="neither a local folder nor a model that the hub"):
        resolve("nobody/nothing-of-this-name")


def test_fingerprint_sees_weights_and_config(copy):
    before = SourceModel(copy).fingerprint()
    assert SourceModel(copy).fingerprint() == before
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    assert SourceModel(copy).fingerprint() != before
