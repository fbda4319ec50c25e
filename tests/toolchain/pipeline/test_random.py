"""Random codes at the shape of any family: the folder that results is one that the runtimes load and compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from export.contract.errors import InputError
from runtime_py.load import open_model
from tests.export.graph.families import COMMON, INTERPRETED, TINY, TINY_ENCODERS
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.cli import app
from toolchain.pipeline.published_shapes import SHAPES, chosen_shape
from toolchain.pipeline.random import write_random_folder
from toolchain.settings.quantize import QuantizeSettings

FAMILIES = [variant for variant in (*TINY, *TINY_ENCODERS) if " " not in variant]
IDS = np.arange(3, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_random_codes(family, tmp_path, monkeypatch):
    fields = {**TINY, **TINY_ENCODERS}[family]
    monkeypatch.setitem(SHAPES, "tiny", {**({} if family == "gpt2" else COMMON), **fields, "model_type": family})
    folder = tmp_path / "model"
    write_random_folder("tiny", folder, QuantizeSettings(bits=4), force=False, quiet=True)
    if family in TINY_ENCODERS:
        assert (folder / "model.onnx").exists()
        return
    model = OnnxRuntime(folder)
    expected, _ = model.run(IDS[None], np.ones((1, 9), np.int64), np.arange(9)[None], model.empty())
    engine, why = open_model(folder)
    found = engine.forward(engine.new_state(), IDS)
    assert (why == "") == (family not in INTERPRETED) and np.isfinite(found).all() and found.std() > 0
    error = np.sqrt(np.mean((found - expected[0]) ** 2, axis=1)) / np.sqrt(np.mean(expected[0] ** 2))
    assert np.median(error) < 0.05  # int8 activations; two experts may be almost equal


@pytest.mark.parametrize("shape", ["scribe-6m", "qwen3-30b-a3b:1"])
def test_dry_run_says_what_the_folder_takes_and_writes_nothing(shape, tmp_path):
    command = ["export", "--random", shape, "--bits", "3", "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*command, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    found = json.loads(done.stdout)
    written = json.loads(CliRunner().invoke(app, command).stdout)["size"] if shape == "scribe-6m" else None
    if written is not None:
        assert found["effective_bits"] == pytest.approx(written["effective_bits"])
        assert found["output_bytes"] == pytest.approx(written["file_bytes"], rel=0.05)  # the graph's text comes besides


def test_a_part_of_a_shape():
    assert chosen_shape("qwen3-30b-a3b:6") == {**SHAPES["qwen3-30b-a3b"], "num_hidden_layers": 6}
    part = chosen_shape("lfm2-8b-a1b:4")
    assert chosen_shape("nemotron-nano-9b-v2:3")["layers_block_type"] == ["linear_attention", "mlp", "linear_attention"]
    assert chosen_shape("gemma-4-e2b:17")["num_kv_shared_layers"] == 2  # of 20 behind the first 15
    assert chosen_shape("gemma-4-e2b:15")["num_kv_shared_layers"] == 0
    assert part["layer_types"] == ["conv", "conv", "full_attention", "conv"] and part["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    "choice", ["qwen3-30b-a3b:49", "qwen3-30b-a3b:0", "qwen3-30b-a3b:-1", "qwen3-4b:x", "gpt-5", ":"]
)
def test_no_shape_of_that_name_or_size(choice):
    with pytest.raises(InputError, match=f"--random '{choice.partition(':')[0]}"):
        chosen_shape(choice)
