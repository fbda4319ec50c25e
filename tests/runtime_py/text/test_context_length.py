"""How many positions a folder was exported for, also where config.json is as an earlier version left it."""

from __future__ import annotations

import json

import pytest

from export.contract.errors import InputError
from export.graph.archs import is_encoder_family, model_spec, supported_model_types
from runtime_py.text.generator import context_length
from tests.export.graph.config_sweep import default_config
from toolchain.source.config import resolved_config


@pytest.mark.parametrize("family", supported_model_types())
def test_a_family_knows_its_kind(family, tmp_path):
    spec = model_spec(resolved_config(default_config(family), tmp_path / "config.json"))
    assert is_encoder_family(family) != spec.causal


@pytest.mark.parametrize("kind", ["unheard_of", None, 3, ["bert"]])
def test_other_types_are_no_encoders(kind):
    assert not is_encoder_family(kind)


def test_folders_of_earlier_versions_still_say_their_context(tmp_path):
    """GPT-2's config.json as the hub has it lacks fields; the graph beside it was made with them all."""
    raw = {"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="field 'n_inner' is missing"):
        context_length(tmp_path)
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"context_length": 64}}))
    assert context_length(tmp_path) == 64
    wrong = ("64", -1, 0, True, 1 << 25, 10**400)
    for broken in ({"model": 1}, *({"model": {"context_length": length}} for length in wrong), {}):
        (tmp_path / "genai_config.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="is missing"):
            context_length(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"context_length": 64}}))
    with pytest.raises(InputError, match=r"config\.json"):
        context_length(tmp_path)
