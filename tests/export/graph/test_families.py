"""Every family and variant on a tiny random configuration: transformers, onnxruntime, interpreter and engine agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.model_folder import write_model_folder
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import (
    COMMON,
    INTERPRETED,
    LLAMA3,
    TINY,
    YARN,
    FloatCheckpoint,
    compare,
    dequantized_model,
    is_mixture,
    random_text,
    tiny_model,
)
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings
from toolchain.source.config import resolved_config


@pytest.mark.parametrize("variant", TINY)
def test_float_export_matches_transformers(variant, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "model"
    tiny_model(variant, source)
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    compare(model, folder, 1e-4)


@pytest.mark.parametrize("variant", [v for v in TINY if "longrope" not in v])  # its exported context ends at 32
def test_forty_tokens_one_by_one_over_the_cache(variant, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "model"
    tiny_model(variant, source)
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    ids, ours = np.random.default_rng(2).integers(0, 96, (1, 50)), OnnxRuntime(folder)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    logits, past = ours.run(ids[:, :10], np.ones((1, 10), np.int64), np.arange(10)[None], ours.empty())
    found = [logits]
    for i in range(10, 50):
        logits, past = ours.run(ids[:, i : i + 1], np.ones((1, i + 1), np.int64), np.asarray([[i]]), past)
        found.append(logits)
    assert np.abs(np.concatenate(found, 1) - expected).max() < 1e-4


# Every family is quantized once in `make test`, with rank 0 or 3 in turns; every variant with both in `make test-long`.
FAMILIES = [variant for variant in TINY if " " not in variant]
QUICK = {(family, 3 * (i % 2)) for i, family in enumerate(FAMILIES)}
CASES = [
    pytest.param(variant, rank, marks=() if (variant, rank) in QUICK else pytest.mark.long)
    for variant in TINY
    for rank in (0, 3)
]


@pytest.mark.parametrize(("variant", "rank"), CASES)
def test_quantized_export_matches_the_dequantized_model(variant, rank, tmp_path):
    source = tmp_path / "source"
    tiny_model(variant, source)
    # rank 0 keeps the embedding in float16 too, so that dense matrices are covered
    options = {"rank": rank, "bits": 4, "sequence_length": 32, "embedding_bits": 8 if rank else 16}
    text = random_text(tmp_path / "text.txt")
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    compare(dequantized_model(source, checkpoint), folder, 1e-4)
    ids = np.random.default_rng(1).integers(0, 96, 12)
    session, reference = Session(folder), OnnxRuntime(folder)
    expected, _ = reference.run(ids[None], np.ones((1, 12), np.int64), np.arange(12)[None], reference.empty())
    np.testing.assert_allclose(session.forward(session.new_state(), ids), expected[0], atol=1e-4)
    engine, why = open_model(folder)
    if variant.split()[0] in INTERPRETED:
        assert why.startswith("not planned")
        return
    assert why == ""  # planned, not interpreted
    state = engine.new_state()
    pieces = [engine.forward(state, ids[a:b]) for a, b in ((0, 9), (9, 10), (10, 12))]
    # int8 activations: each of the 8 to 29 products adds about 0.5 % of its own size
    error = np.sqrt(np.mean((np.concatenate(pieces) - expected[0]) ** 2, axis=-1)) / np.sqrt(np.mean(expected[0] ** 2))
    if is_mixture(variant):  # of two experts that are almost equal the other may be picked, which later tokens see
        assert error.min() < 0.05 and np.median(error) < 0.2
    else:
        assert np.sqrt(np.mean(error**2)) < 0.05


# experts have no integer activations, keys and values that layers share no razored cache
@pytest.mark.parametrize("family", [family for family in FAMILIES if not is_mixture(family)])
def test_razored_export_runs_alike_everywhere(family, tmp_path):
    """Codes flip where the two runners' floats straddle a step: with 8-bit activations a hundredth of the logits."""
    tiny_model(family, tmp_path / "source")
    shares = family in ("gemma3n_text", "gemma4_text")
    razor = RazorSettings(activation_bits=8, kv=0 if shares else 4)
    settings = QuantizeSettings(method="qrazor", bits=4, sequences=2, sequence_length=32, razor=razor)
    choice = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    checkpoint = quantize_model(str(tmp_path / "source"), tmp_path / "quantized", settings, choice, quiet=True)
    folder = _package(checkpoint, tmp_path / "model")
    ids = np.random.default_rng(1).integers(0, 96, 12)
    reference = OnnxRuntime(folder)
    expected, _ = reference.run(ids[None], np.ones((1, 12), np.int64), np.arange(12)[None], reference.empty())
    session = Session(folder)
    found = session.forward(session.new_state(), ids)
    assert np.sqrt(np.mean((found - expected[0]) ** 2)) < 0.02 * np.sqrt(np.mean(expected[0] ** 2))


def resolved_spec(config):
    return model_spec(resolved_config(config, Path("config.json")))


ROTATIONS = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    LLAMA3,
    YARN,
    {**YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2},
    {**YARN, "attention_factor": 0.9},
    {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + i / 8 for i in range(32)],
     "long_factor": [2.0] * 32, "original_max_position_embeddings": 2048},
]  # fmt: skip


@pytest.mark.parametrize("settings", ROTATIONS, ids=lambda s: s["rope_type"])
def test_rotations_are_those_of_transformers(settings):
    sizes = {**COMMON, "hidden_size": 256, "head_dim": 64, "max_position_embeddings": 4096}
    config = AutoConfig.for_model("llama", **sizes, rope_parameters=dict(settings))
    theirs = AutoModelForCausalLM.from_config(config).model.rotary_emb
    spec = model_spec({**config.to_dict(), "model_type": "llama"})
    assert spec.rope is not None
    np.testing.assert_allclose(spec.rope.inverse_frequencies, theirs.inv_freq.numpy(), rtol=1e-6)
    assert spec.rope.attention_factor == pytest.approx(theirs.attention_scaling)
    assert spec.context_length == (2048 if settings["rope_type"] == "longrope" else 4096)


def test_older_spellings_of_a_configuration():
    """config.json as transformers 4 wrote it gives the same description as transformers 5's."""
    new = AutoConfig.for_model("gemma3_text", **COMMON, head_dim=16, rope_parameters=None).to_dict()
    old = {k: v for k, v in new.items() if k not in ("rope_parameters", "layer_types", "_sliding_window_pattern")}
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}
    assert resolved_spec(old) == resolved_spec(new)
    neox = AutoConfig.for_model("gpt_neox", **COMMON).to_dict()
    older = {k: v for k, v in neox.items() if k != "rope_parameters"} | {"rotary_pct": 0.25, "rotary_emb_base": 10000}
    assert resolved_spec(older) == resolved_spec(neox)
    phi = AutoConfig.for_model("phi3", **COMMON).to_dict()
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi = {k: v for k, v in phi.items() if k != "rope_parameters"} | {"rope_scaling": scaling}
    phi["original_max_position_embeddings"] = 16
    assert resolved_spec(phi).context_length == 16
    with pytest.raises(InputError, match="original_max_position_embeddings"):  # as transformers 5 does
        resolved_spec({**phi, "rope_scaling": {**scaling, "type": "su"}})


@pytest.mark.parametrize(
    ("model_type", "field", "message"),
    [
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm True is not supported for stablelm"),
        ("opt", {"ffn_dim": 8, "do_layer_norm_before": False}, "do_layer_norm_before False is not supported for opt"),
        ("opt", {"ffn_dim": 8, "word_embed_proj_dim": 16}, "word_embed_proj_dim must be hidden_size"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not"),
        (
            "phi3",
            {"rope_parameters": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor field must have length 4",
        ),
        ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "rope_type 'mrope' is not supported"),
        ("gpt_neox", {"rotary_pct": 1.5}, "an even part of head_dim"),
    ],
)
def test_what_a_family_lacks_is_said(model_type, field, message):
    with pytest.raises(InputError, match=message):
        resolved_spec({**COMMON, "model_type": model_type, **field})
