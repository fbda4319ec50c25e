"""Rotation settings in every spelling and place, as transformers reads them: frequencies, factor and logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from export.graph.archs import model_spec
from tests.export.graph.config_sweep import Cell, Evaluator, default_config
from toolchain.source.config import resolved_config

FAMILIES = ["llama", "mistral", "qwen2", "smollm3", "gpt_neox", "phi", "phi3", "stablelm", "gemma3_text"]
LINEAR = {"rope_type": "linear", "factor": 2.5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
SU = {"type": "su", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}
# What is put over config.json; None as a value removes the key.
RULES = {
    "scaling beside parameters": {"rope_scaling": YARN},
    "scaling beside parameters, with a theta": {"rope_scaling": {**LINEAR, "rope_theta": 77.0}},
    "scaling null": {"rope_scaling": None, "rope_theta": 500.0},
    "scaling default": {"rope_scaling": {"rope_type": "default"}, "rope_parameters": "-", "rope_theta": 500.0},
    "scaling empty": {"rope_scaling": {}},
    "scaling only, type": {"rope_parameters": "-", "rope_scaling": {"type": "linear", "factor": 3.0}},
    "scaling only, no theta": {"rope_parameters": "-", "rope_scaling": LLAMA3},
    "both type and rope_type": {"rope_parameters": "-", "rope_scaling": {**LINEAR, "type": "dynamic"}},
    "theta alone": {"rope_parameters": "-", "rope_theta": 300},
    "theta in and out": {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}, "rope_theta": 50.0},
    "theta null outside": {"rope_parameters": "-", "rope_theta": None},
    "theta null inside": {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "theta of text": {"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}},
    "parameters null": {"rope_parameters": None},
    "parameters without a type": {"rope_parameters": {"rope_theta": 123.0}},
    "yarn": {"rope_parameters": YARN},
    "yarn, factor null": {"rope_parameters": {**YARN, "factor": None}},
    "yarn, factor missing": {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 16}},
    "yarn, no original": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, original outside": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0},
                               "original_max_position_embeddings": 8},
    "yarn, original in both": {"rope_parameters": YARN, "original_max_position_embeddings": 8},
    "yarn, not truncated": {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 4, "beta_slow": 2}},
    "yarn, truncate null": {"rope_parameters": {**YARN, "truncate": None}},
    "yarn, mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    "yarn, mscale alone": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0}},
    "yarn, attention factor null": {"rope_parameters": {**YARN, "attention_factor": None}},
    "yarn, attention factor": {"rope_parameters": {**YARN, "attention_factor": 0.8}},
    "llama3 without an original": {"rope_parameters": {k: v for k, v in LLAMA3.items() if k[:3] != "ori"}},
    "llama3 without a factor": {"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "factor"}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "dynamic without a factor": {"rope_parameters": {"rope_type": "dynamic"}},
    "longrope": {"rope_parameters": {**SU, "type": "longrope"}, "original_max_position_embeddings": 32},
    "longrope, factor given": {"rope_parameters": {**SU, "type": "longrope", "factor": 6.0,
                                                   "original_max_position_embeddings": 32}},
    "longrope, wrong length": {"rope_parameters": {**SU, "type": "longrope", "short_factor": [1.0, 2.0]}},
    "su": {"rope_parameters": "-", "rope_scaling": SU, "original_max_position_embeddings": 32},
    "partial outside": {"rope_parameters": "-", "partial_rotary_factor": 0.5},
    "partial inside": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "partial in both": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
                        "partial_rotary_factor": 1.0},
    "partial with a scaling": {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    "partial beyond the head": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.5}},
    "rotary_pct": {"rope_parameters": "-", "rotary_pct": 0.5, "rotary_emb_base": 200},
    "unknown type": {"rope_parameters": {"rope_type": "spiral"}},
    "mrope": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "by layer type": {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 60.0}}},
    "by layer type, one null": {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": None}},
    "by layer type, yarn": {"rope_parameters": {"full_attention": {**YARN, "truncate": False},
                                                "sliding_attention": {"rope_type": "default"}}},
    "local base": {"rope_parameters": "-", "rope_theta": 900.0, "rope_local_base_freq": 40.0},
    "list": {"rope_parameters": [1]},
    "text": {"rope_scaling": "yarn"},
}  # fmt: skip
# (family, rule): transformers runs it and we say that we do not.
REFUSED = {  # lists of another length, which torch stretches one pair of channels to
    ("gpt_neox", "longrope"),
    ("gpt_neox", "longrope, factor given"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def evaluator(request, tmp_path_factory):
    return Evaluator(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("rule", RULES)
def test_rotation_rules(rule, evaluator):
    config = default_config(evaluator.family) | RULES[rule]
    config = {name: value for name, value in config.items() if value != "-"}
    different, refusal = evaluator.difference(Cell(evaluator.family, "rope_parameters", rule, config))
    assert not different, different
    assert bool(refusal) == ((evaluator.family, rule) in REFUSED), refusal
    if not refusal:
        _compare_frequencies(evaluator, config)


def _compare_frequencies(evaluator, config):
    """Where transformers takes it: the same radians per position and the same factor on cos and sin."""
    (evaluator.folder / "cell" / "config.json").write_text(json.dumps(config))
    try:
        made = AutoConfig.from_pretrained(evaluator.folder / "cell")
        model = AutoModelForCausalLM.from_config(made)
        theirs = model.gpt_neox.rotary_emb if evaluator.family == "gpt_neox" else model.model.rotary_emb
        spec = model_spec(resolved_config(config, Path("config.json")))
    except Exception:  # both refuse: the comparison of the cell has seen to it
        return
    pairs = [("", spec.rope)]
    if evaluator.family == "gemma3_text":
        pairs = [("full_attention_", spec.rope), ("sliding_attention_", spec.local_rope)]
    for kind, rope in pairs:
        expected = getattr(theirs, f"{kind}inv_freq").numpy()
        np.testing.assert_allclose(np.asarray(rope.inverse_frequencies, np.float32), expected, rtol=1e-6)
        assert rope.attention_factor == pytest.approx(getattr(theirs, f"{kind}attention_scaling"))
