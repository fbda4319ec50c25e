"""Pooling, dense layers and prompts of sentence-transformers folders: by hand, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file

from export.contract.errors import InputError
from export.contract.formats.base import IR_VERSION, OPSET
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.pooling import pool
from export.graph.sentence_modules import read_pooling, read_prompts, sentence_files
from export.graph.writer import GraphWriter

ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity(),
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh(),
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU(),
    "torch.nn.modules.activation.GELU": torch.nn.GELU(),
    "torch.nn.modules.activation.SiLU": torch.nn.SiLU(),
    "torch.nn.modules.activation.Sigmoid": torch.nn.Sigmoid(),
}
MODES = ("cls", "mean", "max", "lasttoken", "mean_sqrt_len_tokens")


class NoCheckpoint:
    def __init__(self):
        self.manifest, self.records = {}, {}


def write_modules(folder, kinds, pooling=None, denses=()):
    """modules.json with these kinds, `1_Pooling/config.json`, and dense layers (settings, weight, bias or None)."""
    paths = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    listed = [
        {"idx": i, "name": str(i), "path": p, "type": f"s.models.{k}"} for i, (k, p) in enumerate(zip(kinds, paths))
    ]
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    for path in filter(None, paths):
        (folder / path).mkdir()
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for path, (settings, weight, bias) in zip((p for p in paths if p.endswith("Dense")), denses):
        rows, columns = weight.shape
        made = {"in_features": columns, "out_features": rows, "bias": bias is not None, **settings}
        (folder / path / "config.json").write_text(json.dumps(made))
        tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
        save_file(tensors, folder / path / "model.safetensors")
    return folder


def by_hand(mode, states, mask, denses=(), normalize=False):
    """float64 [batch, width], one text after another, by torch's own modules."""
    rows = []
    for state, keep in zip(states.astype(np.float64), mask.astype(bool)):
        real = state[keep]
        vector = {
            "cls": state[0], "mean": real.mean(0), "max": real.max(0), "lasttoken": real[-1],
            "mean_sqrt_len_tokens": real.sum(0) / np.sqrt(len(real)),
        }[mode]  # fmt: skip
        for settings, weight, bias in denses:
            name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
            made = weight.astype(np.float64) @ vector + (0 if bias is None else bias.astype(np.float64))
            vector = ACTIVATIONS[name](torch.from_numpy(made)).numpy()
        rows.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.stack(rows)


def random_denses(rng, sizes, names):
    return [
        ({"activation_function": name}, rng.standard_normal((b, a)).astype(np.float32),
         rng.standard_normal(b).astype(np.float32) if i % 2 else None)
        for i, (a, b, name) in enumerate(zip(sizes, sizes[1:], names))
    ]  # fmt: skip


def session_of(folder, width):
    g = GraphWriter()
    hidden = g.input("hidden", ir.DataType.FLOAT, [BATCH, SEQUENCE, width])
    mask = g.input("attention_mask", ir.DataType.INT64, [BATCH, SEQUENCE])
    g.output(pool(Layers(g, NoCheckpoint()), read_pooling(folder), hidden, mask, width), "vector")
    model = ir.to_proto(g.model("pooling", {"": OPSET}, IR_VERSION, [], "test"))
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("later", [False, True], ids=["flags", "pooling_mode"])
@pytest.mark.parametrize("dense", [(), *[(name,) for name in ACTIVATIONS], tuple(ACTIVATIONS)[:2]], ids=len)
@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_those_of_the_modules(mode, dense, later, tmp_path):
    rng = np.random.default_rng(0)
    denses = random_denses(rng, (6, 9, 4)[: len(dense) + 1], dense)
    flag = f"pooling_mode_{mode}_token{'s' if mode != 'cls' else ''}".replace("lasttoken_tokens", "lasttoken")
    flag = flag.replace("tokens_tokens", "tokens")
    pooling = {"pooling_mode": mode} if later else {flag: True, "pooling_mode_weightedmean_tokens": False}
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    session = session_of(write_modules(tmp_path / "m", kinds, pooling, denses), 6)
    for _ in range(4):
        states = rng.standard_normal((3, 7, 6)).astype(np.float32)
        mask = (np.arange(7) < rng.integers(1, 8, (3, 1))).astype(np.int64)
        if mode != "cls":  # padding may stand before the text
            mask[1] = mask[1, ::-1]
        (found,) = session.run(None, {"hidden": states, "attention_mask": mask})
        np.testing.assert_allclose(found, by_hand(mode, states, mask, denses, True), atol=1e-5)


def one_dense(tmp_path, **settings):
    dense = ({"activation_function": "torch.nn.modules.linear.Identity"} | settings, np.ones((3, 4), np.float32), None)
    return write_modules(tmp_path / "m", ["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, [dense])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Hardtanh"}, "Hardtanh' is not supported"),
        ({"activation_function": "os.system"}, "os.system' is not supported"),
        ({"activation_function": None}, "activation_function None is not supported"),
        ({"activation_function": ["x"]}, "is not supported"),
        ({"use_residual": True}, "use_residual True is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not supported"),
        ({"bias": "no"}, "bias 'no' is not supported"),
        ({"in_features": 0}, "in_features must be a whole number"),
        ({"out_features": True}, "out_features must be a whole number"),
        ({"out_features": 2**40}, "out_features must be a whole number"),
    ],
)
def test_dense_layers_that_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        read_pooling(one_dense(tmp_path, **settings))
    assert "2_Dense" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "is missing"),
        ({"linear.weight": np.ones((4, 3), np.float32)}, r"linear.weight must be \[3, 4\] finite numbers"),
        ({"linear.weight": np.full((3, 4), np.nan, np.float32)}, "finite numbers"),
        ({"linear.weight": np.ones((3, 4), np.int8)}, "is stored as int8"),
        ({"weight": np.ones((3, 4), np.float32)}, "must hold linear.weight alone"),
        ({"linear.weight": np.ones((3, 4), np.float32), "linear.bias": np.ones(3, np.float32)}, "alone"),
    ],
)
def test_dense_weights_that_are_refused(tensors, message, tmp_path):
    folder = one_dense(tmp_path)
    path = folder / "2_Dense" / "model.safetensors"
    path.unlink()
    if tensors is not None:
        save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        session_of(folder, 4)


def test_sizes_must_fit(tmp_path):
    with pytest.raises(InputError, match="in_features must be 5, not 4"):
        session_of(one_dense(tmp_path), 5)


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (["Transformer", "Dense"], None, "modules Transformer, Dense are not supported"),
        (["Transformer", "Pooling", "Normalize", "Dense"], {}, "are not supported"),
        (["Transformer", "Pooling", "LayerNorm"], {}, "LayerNorm are not supported"),
        (["StaticEmbedding", "Pooling"], {}, "are not supported"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "pooling_mode 'weightedmean' is not supported"),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean", "max"]}, "mean_tokens, pooling_mode_max_tokens is not"),
        (["Transformer", "Pooling"], {"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens is not"),
        (["Transformer", "Pooling"], {"pooling_mode": {"a": 1}}, "is not supported"),
    ],
)
def test_modules_that_are_refused(kinds, pooling, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        read_pooling(write_modules(tmp_path / "m", kinds, pooling))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["..", "../x", "/etc", "a/b", ".hidden", "1_Pooling\n", 5, None])
def test_a_module_lies_in_a_folder_of_the_model(path, tmp_path):
    modules = [{"type": "s.Transformer", "path": ""}, {"type": "s.Pooling", "path": path}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError):
        read_pooling(tmp_path)


def test_all_files_of_the_modules_are_named(tmp_path):
    folder = one_dense(tmp_path)
    assert sentence_files(folder) == [
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    ]  # fmt: skip
    assert sentence_files(tmp_path) == []


def test_prompts(tmp_path):
    assert read_prompts(tmp_path) == ({}, "")
    folder = write_modules(tmp_path / "m", ["Transformer", "Pooling"], {"pooling_mode": "mean"})
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "Q: ", "document": None}, "default_prompt_name": "query"}))
    assert read_prompts(folder) == ({"query": "Q: ", "document": ""}, "query")
    for settings, message in (
        ({"prompts": {"a": "b"}, "default_prompt_name": "c"}, "default_prompt_name 'c' is not among the prompts"),
        ({"prompts": ["a"]}, "prompts must be texts by name"),
        ({"prompts": {"a": 1}}, "prompts must be texts by name"),
        ({"prompts": {"a": "b"}, "default_prompt_name": 5}, "default_prompt_name 5 is not among"),
    ):
        path.write_text(json.dumps(settings))
        with pytest.raises(InputError, match=message):
            read_prompts(folder)
    path.write_text(json.dumps({"prompts": {"a": "b"}}))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean", "include_prompt": false}')
    with pytest.raises(InputError, match="include_prompt false"):
        read_prompts(folder)
