"""What stock onnxruntime makes of a folder's adapters: the numbers of the merged model."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import AutoModel

from export.adapters.onnx_adapter import onnx_adapter
from export.adapters.stock import GRAPH, write_stock_files
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from runtime_py.load import open_model
from runtime_py.text.encoder import TextEncoder
from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from tests.toolchain.adapters.test_bottlenecks import FORMS, adapted
from tests.toolchain.adapters.test_families import exported
from toolchain.adapters.adding import add_adapter, sites_of

IDS = [5, 6, 7, 8, 9, 30]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_file_is_what_onnxruntime_reads(tmp_path, count):
    rng = np.random.default_rng(count)
    arrays = {
        f"{'layer.' * i}lora_a": rng.standard_normal(rng.integers(0, 9, 2)).astype(np.float32) for i in range(count)
    }
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(onnx_adapter(arrays))
    found = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_onnxruntime_runs_each_adapter_and_none(tmp_path):
    folder = write_tiny(tmp_path / "model", {})
    sites = sites_of(folder)
    for name, rank, bits in (("one", 3, 16), ("two", 7, 8)):
        only = "" if name == "one" else "q_proj"
        add_adapter(folder, name, write_peft(tmp_path / name, random_pairs(sites, rank, rank, 1.0, only), r=rank), bits)
    before = (folder / "model.onnx").read_bytes()
    write_stock_files(folder)
    assert (folder / "model.onnx").read_bytes() == before
    onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    session = ort.InferenceSession(str(folder / GRAPH))
    own, _ = open_model(folder, "float32", adapters=None)
    feeds = {"input_ids": np.asarray([IDS], np.int64), "attention_mask": np.ones((1, len(IDS)), np.int64),
             "position_ids": np.arange(len(IDS), dtype=np.int64)[None]}  # fmt: skip
    for info in session.get_inputs():
        if info.name.startswith("past"):
            feeds[info.name] = np.zeros(
                [n if isinstance(n, int) else int("batch" in n) for n in info.shape], np.float32
            )
    for name in ("", "one", "two"):
        options = ort.RunOptions()
        if name:
            adapter = ort.LoraAdapter()
            adapter.Load(str(folder / "adapters" / f"{name}.onnx_adapter"))
            options.add_active_adapter(adapter)
        (found,) = session.run(["logits"], feeds, options)
        state = own.new_state()
        own.adapt(state, name)
        np.testing.assert_allclose(found[0], own.forward(state, IDS), atol=1e-3)


def test_onnxruntime_runs_bottlenecks(tmp_path):
    """Of every form beside one another and a LoRA, on ALBERT, whose layers share their matrices."""
    folder = exported(tmp_path, "albert")
    model = AutoModel.from_pretrained(tmp_path / "source", dtype=torch.float32)
    names = [""]
    for seed, form in enumerate(FORMS):
        names.append(form.replace(" ", "-"))
        add_adapter(folder, names[-1], adapted(model, tmp_path / names[-1], form, seed), 16)
    names.append("lora")
    add_adapter(folder, "lora", write_peft(tmp_path / "lora", random_pairs(sites_of(folder), 3), r=3))
    write_stock_files(folder)
    onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    session = ort.InferenceSession(str(folder / GRAPH))
    own = TextEncoder(folder, "float32", adapters=None)
    row = np.asarray([IDS], np.int64)
    feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    found = {}
    for name in names:
        options = ort.RunOptions()
        if name:
            adapter = ort.LoraAdapter()
            adapter.Load(str(folder / "adapters" / f"{name}.onnx_adapter"))
            options.add_active_adapter(adapter)
        (found[name],) = session.run(["last_hidden_state"], feeds, options)
        np.testing.assert_allclose(found[name][0], own.states(IDS, adapter=name), atol=1e-4)
        assert not name or np.abs(found[name] - found[""]).max() > 0.1


def test_files_that_would_say_otherwise_go(tmp_path):
    folder = write_tiny(tmp_path / "model", {})
    with pytest.raises(InputError, match="no adapters"):
        write_stock_files(folder)
    lora = write_peft(tmp_path / "lora", random_pairs(sites_of(folder)))
    add_adapter(folder, "x", lora)
    written = write_stock_files(folder)
    assert all(path.exists() for path in written) and read_graph(folder, GRAPH).weights.keys()
    add_adapter(folder, "y", lora)
    assert not any(path.exists() for path in written)
