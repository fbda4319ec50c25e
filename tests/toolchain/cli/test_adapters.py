"""`adapter add`, `list`, `remove` and `onnx`; `run` and `eval` with --adapter."""

from __future__ import annotations

import json

import pytest

from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from tests.toolchain.cli.test_cli import athena
from toolchain.adapters.adding import sites_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapter-commands")
    model = write_tiny(root / "model", {})
    return model, write_peft(root / "lora", random_pairs(sites_of(model), 4, size=1.0))


def test_the_way_of_an_adapter(folders):
    model, lora = folders
    assert "rank 4 in 15 layers" in athena("adapter", "add", model, f"x={lora}", "--bits", 8).stdout
    (entry,) = json.loads(athena("adapter", "list", model, "--json").stdout)["adapters"]
    assert (entry["name"], entry["bits"], entry["source"]["base_model_name_or_path"]) == ("x", 8, "somebody/model")
    assert "somebody/model" in athena("adapter", "list", model).stdout
    again = athena("adapter", "add", model, f"x={lora}", code=2).stderr
    assert "--force" in again and again.count("\n") == 1
    texts = [
        json.loads(athena("run", model, "--prompt", "a b", "--max-tokens", 6, "--json", *more).stdout)["token_ids"]
        for more in ((), ("--adapter", "x"))
    ]
    assert texts[0] != texts[1]
    assert "there is x" in athena("run", model, "--adapter", "y", code=2).stderr
    assert "model_adapters.onnx" in athena("adapter", "onnx", model).stdout
    athena("adapter", "remove", model, "x")
    assert "no adapters" in athena("adapter", "list", model).stderr
    assert not (model / "model_adapters.onnx").exists()
    athena("adapter", "remove", model, "x", code=2)


def test_what_is_no_folder(folders, tmp_path):
    model, lora = folders
    for arguments in ((tmp_path, f"x={lora}"), (model, "x"), (model, f"x={tmp_path}"), (model, f"../x={lora}")):
        assert athena("adapter", "add", *arguments, code=2).stderr.count("\n") == 1
