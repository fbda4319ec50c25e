"""`adapter add`, `list`, `remove` and `onnx`; `run` and `eval` with --adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from runtime_py.text.encoder import TextEncoder
from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from tests.toolchain.adapters.test_bottlenecks import adapted
from tests.toolchain.adapters.test_families import exported
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


def test_every_command_with_an_adapter(folders, tmp_path):
    """`chat` and `eval` (a text, choices) answer otherwise with it, and refuse a name that is not there."""
    model, lora = folders
    athena("adapter", "add", model, f"y={lora}", "--bits", 32)
    text, choices = tmp_path / "text.txt", tmp_path / "choices.jsonl"
    text.write_text("once upon a time there was a little girl " * 8)
    words = ["time", "end", "girl", "dog", "sun", "day", "tree", "house"]
    questions = [{"prompt": f"once upon a {one}", "choices": [f" the {word}" for word in words], "answer": i}
                 for one in words for i in range(len(words))]  # fmt: skip
    shown = [json.dumps(one) for i, one in enumerate(questions) if i % 9 == i // 8 % 9 or i % 3 == 0]
    choices.write_text("\n".join(shown))
    commands = {
        "text": ("eval", model, "--text", text, "--window", 16, "--json"),
        "choices": ("eval", model, "--choices", choices, "--json"),
        "chat": ("chat", model, "--temperature", 0, "--max-tokens", 8),
    }
    for name, command in commands.items():
        given = "once upon a time\n" if name == "chat" else None
        plain, with_it = (athena(*command, *more, given=given).stdout for more in ((), ("--adapter", "y")))
        assert plain != with_it, name
        refused = athena(*command, "--adapter", "z", code=2, given=given).stderr
        assert "there is y" in refused and refused.strip().count("\n") == 0, name
    athena("adapter", "remove", model, "y")


def test_embed_with_an_adapter(tmp_path):
    """Of both kinds; what it prints are the encoder's vectors with it."""
    folder = exported(tmp_path, "bert")
    model = AutoModel.from_pretrained(tmp_path / "source", dtype=torch.float32)
    neck = adapted(model, tmp_path / "neck", "houlsby")
    pairs = random_pairs(sites_of(folder), 3, only="query")
    lora = write_peft(tmp_path / "lora", pairs, r=3, target_modules=["query"])
    for name, source in (("neck", neck), ("low", lora)):
        athena("adapter", "add", folder, f"{name}={source}", "--bits", 32)
    kinds = {
        one["name"]: one["kind"] for one in json.loads(athena("adapter", "list", folder, "--json").stdout)["adapters"]
    }
    assert kinds == {"neck": "bottleneck", "low": "lora"}
    encoder, found = TextEncoder(folder, adapters=None), {}
    for name in ("", "neck", "low"):
        more = ("--adapter", name) if name else ()
        told = json.loads(athena("embed", folder, "--text", "a b c", "--json", *more).stdout)
        found[name] = told["vectors"][0]
        np.testing.assert_allclose(found[name], encoder.embed_ids(encoder.encode("a b c"), name), rtol=1e-5)
    assert len({tuple(vector) for vector in found.values()}) == 3
    assert "there is low, neck" in athena("embed", folder, "--text", "a", "--adapter", "z", code=2).stderr


def test_what_is_no_folder(folders, tmp_path):
    model, lora = folders
    for arguments in ((tmp_path, f"x={lora}"), (model, "x"), (model, f"x={tmp_path}"), (model, f"../x={lora}")):
        assert athena("adapter", "add", *arguments, code=2).stderr.count("\n") == 1
