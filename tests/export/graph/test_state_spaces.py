"""Families with state spaces: limits of the steps, states under genai's names, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.contract.errors import InputError
from export.files.access import read_json
from export.graph.archs import model_spec
from export.graph.archs._tasks import EMBEDDING, TASK
from export.model_folder import write_model_folder
from tests.export.graph.families import FloatCheckpoint, tiny_model
from tests.runtime_py.reference.test_session import OnnxRuntime

LIMITED = [("mamba2", {"time_step_limit": [0.2, 1.5]}), ("granitemoehybrid", {"time_step_limit": [0.1, float("inf")]}),
           ("nemotron_h dense", {"time_step_min": 0.3}), ("falcon_h1", {"time_step_limit": [0.0, 0.7]})]  # fmt: skip


def exported(source, folder) -> OnnxRuntime:
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    return OnnxRuntime(folder)


@pytest.mark.parametrize(("variant", "limit"), LIMITED)
def test_limits_of_steps_are_those_of_transformers_in_every_call(variant, limit, tmp_path):
    tiny_model(variant, tmp_path / "plain")
    tiny_model(variant, tmp_path / "limited", **limit)
    ids, logits = np.random.default_rng(3).integers(0, 96, (1, 24)), []
    for name in ("plain", "limited"):
        kind = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            logits.append(kind.eval()(torch.from_numpy(ids)).logits.numpy())
    assert np.abs(logits[0] - logits[1]).max() > 1e-2  # the same weights: it is seen
    ours, found = exported(tmp_path / "limited", tmp_path / "model"), []
    past = ours.empty()
    for first, last in ((0, 9), (9, 10), (10, 11), (11, 24)):
        row = ids[:, first:last]
        part, past = ours.run(row, np.ones((1, last), np.int64), np.arange(first, last)[None], past)
        found.append(part)
    assert np.abs(np.concatenate(found, 1) - logits[1]).max() < 1e-4


@pytest.mark.parametrize("limit", [[0.5, 0.1], [float("-inf"), 1.0], [0.1], [float("nan"), 1.0], "0.1"])
def test_limits_that_are_none_are_refused(limit, tmp_path):
    tiny_model("mamba2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "time_step_limit": limit}))
    with pytest.raises(InputError, match="time_step_limit"):
        FloatCheckpoint(tmp_path)


def test_the_written_config_is_json(tmp_path):
    """Infinity has no word there: it is an object, as transformers writes it."""
    tiny_model("mamba2", tmp_path / "source")
    exported(tmp_path / "source", tmp_path / "model")
    text = (tmp_path / "model" / "config.json").read_text()

    def no_such_word(word: str) -> float:
        raise AssertionError(word)

    assert json.loads(text, parse_constant=no_such_word)["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


@pytest.mark.parametrize(
    ("variant", "kinds"),
    [("mamba2", ["linear_attention"] * 3), ("granitemoehybrid dense", ["full_attention", "linear_attention"]),
     ("falcon_h1", None), ("nemotron_h", None)],
)  # fmt: skip
def test_genai_is_told_of_states(variant, kinds, tmp_path):
    tiny_model(variant, tmp_path / "source")
    model = exported(tmp_path / "source", tmp_path / "model")
    decoder = read_json(tmp_path / "model" / "genai_config.json")["model"]["decoder"]
    assert decoder.get("layer_types") == kinds
    assert ("past_recurrent_names" in decoder["inputs"]) == (kinds is not None)
    states = {info.name for info in model.session.get_inputs() if info.name.endswith("_state")}
    assert all(name.startswith("past_key_values.") for name in states) and len(states) % 2 == 0 and states


@pytest.mark.parametrize("variant", ["falcon_h1", "qwen3_5_text", "lfm2"])
def test_no_embedding_model_keeps_states(variant, tmp_path):
    tiny_model(variant, tmp_path)
    config = FloatCheckpoint(tmp_path).config
    with pytest.raises(InputError, match="as an embedding model is not supported"):
        model_spec({**config, TASK: EMBEDDING})
