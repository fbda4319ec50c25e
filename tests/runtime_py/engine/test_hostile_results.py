"""Graphs whose nodes are not named apart, and graphs whose result is not the one that was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.artefacts.reader import own_names, read_graph
from export.contract.errors import InputError
from export.lowering.folder import Lowering, write_lowered_folder
from runtime_py.load import open_model
from runtime_py.text.encoder import TextEncoder
from tests.conftest import DEMO
from tests.fuzz.targets import tiny_bert
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

FORMATS = {
    "codebook": QuantizeSettings(bits=3, method="rtn"),
    "razored": QuantizeSettings(method="qrazor", bits=4, razor=RazorSettings(activation_bits=4, kv=4)),
    "tender": QuantizeSettings(method="tender", bits=4, razor=RazorSettings(activation_bits=4, activation_groups=14)),
    "trellis": QuantizeSettings(bits=2, format="trellis"),
}
NAMES = {
    "no names": lambda number, name: "",
    "one name": lambda number, name: "node",
    "two names": lambda number, name: f"n{number % 2}",
    "names that look made": lambda number, name: f"#{number + 1}" if number % 2 else "",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("results")
    return {name: write_tiny(root / name, {}, settings) for name, settings in FORMATS.items()} | {
        "bert": tiny_bert(root)
    }


def edited(folder: Path, target: Path, edit) -> Path:
    shutil.copytree(folder, target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    edit(model.graph)
    onnx.save(model, target / "model.onnx")
    return target


def renamed(folder: Path, target: Path, case: str) -> Path:
    def edit(graph):
        for number, node in enumerate(graph.node):
            node.name = NAMES[case](number, node.name)

    return edited(folder, target, edit)


def logits(folder: Path, activations: str) -> np.ndarray:
    runner, _ = open_model(folder, activations, threads=1)
    state = runner.new_state()
    return np.concatenate([runner.forward(state, ids) for ids in ([5, 300, 7], [1], [9, 9])])


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("form", FORMATS)
def test_nodes_that_are_not_named_apart_compute_the_same(folders, tmp_path, form, case, activations):
    """Caches and weights are kept by node: two with one name would share them."""
    found = logits(renamed(folders[form], tmp_path / "m", case), activations)
    np.testing.assert_array_equal(found, logits(folders[form], activations))


@pytest.mark.parametrize("case", NAMES)
def test_nodes_that_are_not_named_apart_are_lowered_apart(folders, tmp_path, case):
    outputs = []
    for source in (folders["codebook"], renamed(folders["codebook"], tmp_path / "m", case)):
        out = tmp_path / f"lowered{len(outputs)}"
        out.mkdir()
        write_lowered_folder(source, out, Lowering("x", ("group_query_attention", "matmul_nbits"), check=False))
        outputs.append({node.op_type: 0 for node in read_graph(out).nodes})
        names = [tensor.name for tensor in onnx.load(out / "model.onnx").graph.initializer]
        assert len(set(names)) == len(names)
    assert outputs[0].keys() == outputs[1].keys()


@pytest.mark.parametrize(
    "given",
    [["a", "b"], ["", "", ""], ["a", "a", "a#1"], ["a#1", "a", "a"], ["", "#0", "#0#", ""], ["x"] * 100, [""] * 20_000],
    ids=lambda given: f"{len(given)} {given[0]}",
)
def test_names_are_made_different(given):
    found = own_names(given)
    assert len(set(found)) == len(given) and "" not in found
    for i, name in enumerate(given):
        assert found[i] == name or name == "" or name in given[:i]


def then(*nodes, **weights):
    """What is done to the logits, which these nodes read as `pre`."""

    def edit(graph):
        for node in graph.node:
            node.output[:] = ["pre" if name == "logits" else name for name in node.output]
        for name, value in weights.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        graph.node.extend(nodes)

    return edit


RESULTS = {
    "whole numbers": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.INT64)),
    "bytes": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.UINT8)),
    "true or false": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.BOOL)),
    "texts": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.STRING)),
    "complex numbers": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.COMPLEX64)),
    "bfloat16": then(helper.make_node("Cast", ["pre"], ["logits"], to=TensorProto.BFLOAT16)),
    "of one token": then(helper.make_node("Gather", ["pre", "i"], ["logits"], axis=1), i=np.array([0])),
    "of no token": then(helper.make_node("Gather", ["pre", "i"], ["logits"], axis=1), i=np.zeros(0, np.int64)),
    "of twice the tokens": then(helper.make_node("Concat", ["pre", "pre"], ["logits"], axis=1)),
    "of two texts": then(helper.make_node("Concat", ["pre", "pre"], ["logits"], axis=0)),
    "turned": then(helper.make_node("Transpose", ["pre"], ["logits"], perm=[0, 2, 1])),
    "flat": then(helper.make_node("Squeeze", ["pre", "i"], ["logits"]), i=np.array([0])),
    "of no vocabulary": then(helper.make_node("Gather", ["pre", "i"], ["logits"], axis=2), i=np.zeros(0, np.int64)),
}


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("case", RESULTS)
def test_results_of_another_shape_or_type_are_refused(folders, tmp_path, case, activations):
    folder = edited(folders["codebook"], tmp_path / "m", RESULTS[case])
    with pytest.raises(InputError, match=r"logits"):
        runner, _ = open_model(folder, activations, threads=1)
        runner.forward(runner.new_state(), [1, 2, 3])


def test_halves_and_doubles_are_taken(folders, tmp_path):
    for number, kind in enumerate((TensorProto.FLOAT16, TensorProto.DOUBLE)):
        edit = then(helper.make_node("Cast", ["pre"], ["logits"], to=kind))
        found = logits(edited(folders["codebook"], tmp_path / str(number), edit), "float32")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, logits(folders["codebook"], "float32"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64])
def test_vectors_of_another_type_are_refused(folders, tmp_path, kind):
    def edit(graph):
        for node in graph.node:
            node.output[:] = ["pre" if name == "sentence_embedding" else name for name in node.output]
        graph.node.append(helper.make_node("Cast", ["pre"], ["sentence_embedding"], to=kind))

    with pytest.raises(InputError, match=r"sentence_embedding|Cast"):
        TextEncoder(edited(folders["bert"], tmp_path / "m", edit))


@pytest.mark.parametrize("text", ["!?" * 2_000_000, "a " * 100_000, "\U0001f600" * 500_000], ids=["!?", "a", "emoji"])
def test_a_text_that_cannot_fit_an_encoder_is_not_tokenized(folders, tmp_path, monkeypatch, text):
    folder = shutil.copytree(folders["bert"], tmp_path / "m")
    shutil.copyfile(DEMO / "tokenizer.json", folder / "tokenizer.json")  # no text vanishes in its tokens
    encoder, called = TextEncoder(folder), []
    monkeypatch.setattr("runtime_py.text.encoder.encode", lambda *_: called.append(1))
    with pytest.raises(InputError, match="more than the"):
        encoder.encode(text, cut=False)
    assert not called


@pytest.mark.parametrize("token", [-1, 96, 2**31, 2**63, 10**30, -(2**63) - 1])
def test_ids_that_no_vocabulary_has_are_refused(folders, token):
    encoder = TextEncoder(folders["bert"])
    for activations in ("int8", "float32"):
        with pytest.raises(InputError, match="token"):
            TextEncoder(folders["bert"], activations).embed_ids([1, token])
    assert encoder.embed_ids([1, 2]).size == encoder.width
