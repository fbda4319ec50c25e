"""LoRA folders of PEFT: every field of adapter_config.json is honoured as PEFT honours it, or refused in one line."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest

from export.adapters.sites import Site
from export.adapters.store import read_adapter
from export.contract.errors import InputError
from tests.peft_folders import random_pairs, write_peft
from tests.runtime_py.tiny import write_tiny
from toolchain.adapters.adding import add_adapter, check_asked, named_folders, sites_of
from toolchain.adapters.peft_folder import read_lora
from toolchain.settings.quantize import QuantizeSettings

SITES = [
    Site(f"/{layer}/{name}", f"model.layers.{layer}.{part}.{name}", rows, columns)
    for layer in range(3)
    for part, name, rows, columns in (
        ("self_attn", "q_proj", 12, 8), ("self_attn", "v_proj", 4, 8), ("mlp", "down_proj", 8, 20)
    )
]  # fmt: skip
QUERIES = tuple(site.module for site in SITES if site.module.endswith("q_proj"))


def deltas(adapter):
    """W' - W of each module, float64 [rows, columns]."""
    return {m: term.floats()[1].T.astype(np.float64) @ term.floats()[0] for m, term in adapter.terms.items()}


def same(found, pairs, scale):
    assert list(found) == list(pairs)
    for module, (a, b) in pairs.items():
        factor = scale if isinstance(scale, float | int) else scale[module]
        np.testing.assert_allclose(found[module], factor * (b.astype(np.float64) @ a), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_and_their_scale(tmp_path, dtype):
    pairs = random_pairs(SITES, 4)
    for config, scale in (
        ({}, 2.0), ({"lora_alpha": 3}, 0.75), ({"use_rslora": True}, 4.0), ({"lora_alpha": 0}, 0.0),
        ({"alpha_pattern": {"q_proj": 16}}, {m: 4.0 if m in QUERIES else 2.0 for m in pairs}),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 16}},
         {m: 4.0 if m == QUERIES[1] else 2.0 for m in pairs}),
        ({"alpha_pattern": {r"model\.layers\.[01]\..*": 4}}, {m: 1.0 if ".2." not in m else 2.0 for m in pairs}),
        ({"fan_in_fan_out": True, "lora_dropout": 0.5, "peft_version": "9", "revision": "x", "loftq_config": {}}, 2.0),
    ):  # fmt: skip
        folder = write_peft(tmp_path / "lora", pairs, dtype, **config)
        same(deltas(read_lora(folder, "x", SITES, 32)), pairs, scale)


def test_ranks_of_their_own(tmp_path):
    pairs = random_pairs(SITES, 4) | random_pairs(SITES, 7, only="v_proj")
    folder = write_peft(tmp_path / "lora", pairs, rank_pattern={"v_proj": 7})
    same(deltas(read_lora(folder, "x", SITES, 32)), pairs, {m: 8 / 7 if m.endswith("v_proj") else 2.0 for m in pairs})
    folder = write_peft(tmp_path / "lora", pairs, rank_pattern={r".*\.v_.*": 7})
    assert read_lora(folder, "x", SITES, 16).rank() == 7
    with pytest.raises(InputError, match="rank 7, adapter_config.json says 4"):
        read_lora(write_peft(tmp_path / "lora", pairs), "x", SITES, 16)


TARGETS = {
    "names": {"target_modules": ["q_proj"]},
    "longer names": {"target_modules": ["self_attn.q_proj", "nothing"]},
    "an expression": {"target_modules": r".*\.(q|k)_proj"},
    "all": {"target_modules": "all-linear"},
    "all, in capitals": {"target_modules": "ALL-LINEAR"},
    "others excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
    "others excluded by an expression": {"target_modules": "all-linear", "exclude_modules": r".*v_proj"},
    "all layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 2], "layers_pattern": "layers"},
    "numbers alone": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 2]},
}
MISSED = {
    "another name": {"target_modules": ["v_proj"]},
    "a part of a name": {"target_modules": ["_proj"]},
    "an expression of a part": {"target_modules": r"q_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    "another layer": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "another list": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 2], "layers_pattern": "blocks"},
}


@pytest.mark.parametrize("case", TARGETS)
def test_layers_that_are_selected(tmp_path, case):
    pairs = random_pairs(SITES, 4, only="q_proj")
    same(deltas(read_lora(write_peft(tmp_path / "lora", pairs, **TARGETS[case]), "x", SITES, 32)), pairs, 2.0)


@pytest.mark.parametrize("case", MISSED)
def test_factors_of_layers_that_are_not_selected(tmp_path, case):
    folder = write_peft(tmp_path / "lora", random_pairs(SITES, 4, only="q_proj"), **MISSED[case])
    with pytest.raises(InputError, match="does not select it"):
        read_lora(folder, "x", SITES, 32)


REFUSED = {
    "use_dora": ({"use_dora": True}, "DoRA.*merge_and_unload"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "bias": ({"bias": "lora_only"}, "bias 'lora_only'"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "target_parameters": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "replication": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "alora": ({"alora_invocation_tokens": [1]}, "aLoRA"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "none": ({"peft_type": None}, "peft_type"),
    "unknown": ({"use_something_new": True}, "use_something_new is not known"),
    "no targets": ({"target_modules": None}, "names no layer"),
    "rank": ({"r": 0}, "r must be"),
    "alpha": ({"lora_alpha": "8"}, "lora_alpha"),
    "pattern": ({"alpha_pattern": {"(": 8}}, "no regular expression"),
    "patterns": ({"rank_pattern": [4]}, "rank_pattern must be an object"),
    "targets": ({"target_modules": [4]}, "target_modules must be"),
    "layers": ({"layers_to_transform": ["a"]}, "layers_to_transform"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
    config, told = REFUSED[case]
    with pytest.raises(InputError, match=told) as refused:
        read_lora(write_peft(tmp_path / "lora", random_pairs(SITES, 4), **config), "x", SITES, 16)
    assert "\n" not in str(refused.value) and "adapter_config.json" in str(refused.value)


def test_what_is_unknown_but_off_is_no_matter(tmp_path):
    folder = write_peft(tmp_path / "lora", random_pairs(SITES, 4), use_something_new=False, another=None, third={})
    assert len(read_lora(folder, "x", SITES, 16).terms) == len(SITES)


def test_an_expression_that_never_ends(tmp_path):
    pairs = {"model.layers.0." + "a" * 60: (np.ones((4, 8), np.float32), np.ones((8, 4), np.float32))}
    start = time.monotonic()
    with pytest.raises(InputError, match="longer than 5 seconds"):
        read_lora(write_peft(tmp_path / "lora", pairs, target_modules=r".*(a+)+b"), "x", SITES, 16)
    assert time.monotonic() - start < 60


A, B = np.ones((4, 8), np.float32), np.ones((12, 4), np.float32)
ROOT = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {
    "nothing": ({}, "no factors"),
    "one of two": ({f"{ROOT}.lora_A.weight": A}, "only one of lora_A and lora_B"),
    "another layer": ({f"{ROOT}x.lora_A.weight": A, f"{ROOT}x.lora_B.weight": B}, "no layer of this model"),
    "sizes": ({f"{ROOT}.lora_A.weight": A[:, :7], f"{ROOT}.lora_B.weight": B}, "do not fit the layer"),
    "ranks": ({f"{ROOT}.lora_A.weight": A[:3], f"{ROOT}.lora_B.weight": B}, "rank 3"),
    "flat": ({f"{ROOT}.lora_A.weight": A[0], f"{ROOT}.lora_B.weight": B}, "not a matrix"),
    "whole numbers": ({f"{ROOT}.lora_A.weight": A.astype(np.int8), f"{ROOT}.lora_B.weight": B}, "not a matrix"),
    "no numbers": ({f"{ROOT}.lora_A.weight": A * np.nan, f"{ROOT}.lora_B.weight": B}, "not finite"),
    "infinite": ({f"{ROOT}.lora_A.weight": A, f"{ROOT}.lora_B.weight": B * np.inf}, "not finite"),
    "embeddings": ({"base_model.model.model.embed_tokens.lora_embedding_A": A}, "another method"),
    "magnitudes": ({f"{ROOT}.lora_magnitude_vector": A[0]}, "another method"),
    "a saved layer": ({"base_model.model.lm_head.weight": A}, "another method"),
    "twice": ({f"{ROOT}.lora_A.weight": A, f"{ROOT}.lora_A.default.weight": A}, "twice"),
    "too large a rank": ({f"{ROOT}.lora_A.weight": np.ones((1025, 8), np.float32),
                          f"{ROOT}.lora_B.weight": np.ones((12, 1025), np.float32)}, "rank 1025"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(tmp_path, case):
    tensors, told = TENSORS[case]
    with pytest.raises(InputError, match=told) as refused:
        read_lora(write_peft(tmp_path / "lora", {}, more=tensors), "x", SITES, 16)
    assert "\n" not in str(refused.value)


def test_names_as_peft_writes_them(tmp_path):
    for key in (f"{ROOT}.lora_{{}}.weight", f"{ROOT}.lora_{{}}.default.weight", f"{ROOT}.lora_{{}}.sql.weight",
                "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight",
                "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"):  # fmt: skip
        folder = write_peft(tmp_path / "lora", {}, more={key.format("A"): A, key.format("B"): B})
        assert list(read_lora(folder, "x", SITES, 16).terms) == ["model.layers.0.self_attn.q_proj"]
    key = "base_model.model.self_attn.q_proj.lora_{}.weight"  # of any layer
    with pytest.raises(InputError, match="no layer of this model"):
        read_lora(write_peft(tmp_path / "lora", {}, more={key.format("A"): A, key.format("B"): B}), "x", SITES, 16)


def test_float16_that_is_too_narrow(tmp_path):
    pair = {QUERIES[0]: (np.full((4, 8), 1e6, np.float32), np.full((12, 4), 1e6, np.float32))}
    folder = write_peft(tmp_path / "lora", pair)
    with pytest.raises(InputError, match="--bits 32"):
        read_lora(folder, "x", SITES, 16)
    same(deltas(read_lora(folder, "x", SITES, 32)), pair, 2.0)


def test_a_pickle_is_not_read(tmp_path):
    folder = write_peft(tmp_path / "lora", random_pairs(SITES, 4))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="safe_serialization"):
        read_lora(folder, "x", SITES, 16)


def test_links_out_of_the_folder_are_refused(tmp_path):
    folder = write_peft(tmp_path / "lora", random_pairs(SITES, 4))
    other = tmp_path / "elsewhere"
    (folder / "adapter_model.safetensors").rename(other)
    (folder / "adapter_model.safetensors").symlink_to(other)
    with pytest.raises(InputError, match="link out of the folder"):
        read_lora(folder, "x", SITES, 16)


def test_names_and_folders_of_the_command_line(tmp_path):
    folder = write_peft(tmp_path / "lora", random_pairs(SITES, 4))
    assert named_folders([f"sql={folder}"], "--adapter") == {"sql": folder}
    for given in (["sql"], ["sql="], [f"a/b={folder}"], [f"={folder}"], ["sql=/nowhere"], [f"a={folder}"] * 2):
        with pytest.raises(InputError):
            named_folders(given, "--adapter")
    for settings in (QuantizeSettings(rotation="values"), QuantizeSettings(equalize=True)):
        with pytest.raises(InputError, match="without"):
            check_asked([f"a={folder}"], 16, settings)
        assert check_asked([], 16, settings) == {}
    with pytest.raises(InputError, match="--adapter-bits"):
        check_asked([f"a={folder}"], 7, QuantizeSettings())


def test_a_rotated_folder_is_refused(tmp_path):
    folder = write_tiny(tmp_path / "model", {}, QuantizeSettings(bits=8, method="rtn", equalize=True))
    lora = write_peft(tmp_path / "lora", random_pairs(sites_of(folder), 4))
    with pytest.raises(InputError, match="--equalize"):
        add_adapter(folder, "x", lora)


def test_what_is_there_stays_where_another_does_not_fit(tmp_path):
    folder = write_tiny(tmp_path / "model", {})
    lora = write_peft(tmp_path / "lora", random_pairs(sites_of(folder), 4))
    add_adapter(folder, "x", lora)
    with pytest.raises(InputError, match="--force"):
        add_adapter(folder, "x", lora)
    with pytest.raises(InputError):
        add_adapter(folder, "x", write_peft(tmp_path / "other", random_pairs(SITES, 4)), force=True)
    assert read_adapter(folder, "x").rank() == 4
    add_adapter(folder, "x", write_peft(tmp_path / "lora", random_pairs(sites_of(folder), 6), r=6), 8, force=True)
    assert (read_adapter(folder, "x").rank(), read_adapter(folder, "x").bits) == (6, 8)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {
    r"layers\.1\..*": 5}}, {"target_modules": "all-linear", "layers_to_transform": None}])  # fmt: skip
def test_folders_of_peft_itself(tmp_path, wide_model, more):
    """What PEFT adds to each matrix when it merges."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(wide_model, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **more})
    tuned = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    tuned.save_pretrained(tmp_path / "lora")
    after = tuned.merge_and_unload().state_dict()
    sites = [Site(n, n.removesuffix(".weight"), *w.shape) for n, w in before.items() if w.ndim == 2 and "_proj" in n]
    found = deltas(read_lora(tmp_path / "lora", "x", sites, 32))
    for name, old in before.items():
        change = (after[name] - old).numpy()
        np.testing.assert_allclose(found.get(name.removesuffix(".weight"), np.zeros(1)) + 0 * change, change, atol=1e-6)
