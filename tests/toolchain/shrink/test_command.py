"""`shrink` as a user runs it: what it writes, that it goes on where it was stopped, what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.conftest import DEMO
from toolchain.cli import app

QUICK = ["--sequences", "4", "--sequence-length", "32", "--eval-windows", "1"]


def shrink(*arguments, code=0):
    result = CliRunner().invoke(app, ["shrink", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def shrunk(*arguments):
    """The report on stdout."""
    return json.loads(shrink(*arguments, "--json").stdout)


def test_magnitude_writes_what_transformers_loads(tiny, tmp_path):
    out = tmp_path / "OUT"
    report = shrunk(tiny, "-o", out, "--keep", 0.6, *QUICK, "--multiple", 8)
    assert [p.name for p in tmp_path.iterdir()] == ["OUT"]
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    linear = [p for n, p in model.named_parameters() if n.startswith("model.layers") and p.ndim == 2]
    assert sum(p.numel() for p in linear) == report["linear_weights"]["after"]
    assert 0.5 < report["linear_weights"]["after"] / report["linear_weights"]["before"] <= 0.6
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]["after"]
    assert report["cost"]["after"]["latency_s"] < report["cost"]["before"]["latency_s"]
    assert report["quality"]["kl"] > 0
    assert (out / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()
    with torch.no_grad():
        assert model(torch.arange(3, 20)[None]).logits.shape == (1, 17, 1536)


def test_a_model_far_from_its_source_is_said_to_be(tiny, tmp_path, monkeypatch):
    """A random model is far from nothing: so the limit is set to its own distance, and just above it."""
    asked = [tiny, "--keep", 0.6, *QUICK, "--multiple", 8]
    kl = shrunk(*asked, "-o", tmp_path / "known")["quality"]["kl"]
    for limit, options, told in (
        (0.9 * kl, [], "a larger --keep, --reconstruct, --by search or --heal-steps 200 help"),
        (0.0, ["--reconstruct", "--heal-steps", 1], "a larger --keep, --by search or more --heal-steps help"),
        (1.1 * kl, [], ""),
    ):
        monkeypatch.setattr("toolchain.cli.reducing.shrink._DISAPPOINTING", limit)
        said = shrink(*asked, *options, "-o", tmp_path / "OUT", "--force").stderr
        assert ("warning: answers will differ much" in said) == bool(told) and told in said


def test_a_dry_run_says_the_sizes_and_writes_nothing(tiny, tmp_path):
    dry = shrunk(tiny, "-o", tmp_path / "OUT", "--keep", 0.6, "--dry-run", *QUICK)
    assert not list(tmp_path.iterdir())
    report = shrunk(tiny, "-o", tmp_path / "OUT", "--keep", 0.6, *QUICK)
    assert dry["sizes"] == report["sizes"] and dry["parameters"] == report["parameters"]
    assert dry["cost"] == report["cost"]


def test_what_exists_is_replaced_only_with_force_and_only_if_ours(tiny, tmp_path):
    out = tmp_path / "OUT"
    shrink(tiny, "-o", out, "--keep", 0.6, *QUICK)
    assert "not empty" in shrink(tiny, "-o", out, "--keep", 0.7, *QUICK, code=2).stderr
    shrink(tiny, "-o", out, "--keep", 0.8, *QUICK, "--force")
    assert json.loads((out / "shrink.json").read_text())["settings"]["budget"]["keep"] == 0.8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "not replaced" in shrink(tiny, "-o", tmp_path / "mine", "--keep", 0.8, *QUICK, "--force", code=2).stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_stopped_run_goes_on_to_the_same_numbers(tiny, tmp_path, monkeypatch):
    asked = [tiny, "--keep", 0.6, *QUICK, "--reconstruct", "--heal-steps", 3, "--heal-batch", 2, "--heal-length", 16]
    shrink(*asked, "-o", tmp_path / "whole")
    from toolchain.tune.end_to_end import Tuner

    step = Tuner._train_step

    def stops(self):
        if self.step == 1:
            self._save()
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Tuner, "_train_step", stops)
    shrink(*asked, "-o", tmp_path / "OUT", code=130)
    monkeypatch.setattr(Tuner, "_train_step", step)
    assert "stopped" in shrink(*asked, "-o", tmp_path / "OUT", "--seed", 1, code=2).stderr
    shrink(*asked, "-o", tmp_path / "OUT")
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("OUT", "whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {p.name for p in tmp_path.iterdir()} == {"OUT", "whole"}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([], "--keep"),
        (["--keep", "1.5"], "--keep"),
        (["--keep", "nan"], "--keep"),
        (["--keep", "0.05"], "no number of heads"),
        (["--latency", "20 apples"], "--latency"),
        (["--latency", "1ms", "--energy", "1mJ"], "one of them"),
        (["--latency", "1ns"], "no number of heads"),
        (["--latency", "1s"], "nothing to cut"),
        (["--keep", "0.5", "--by", "luck"], "--by"),
        (["--keep", "0.5", "--target", "abacus"], "abacus"),
        (["--keep", "0.5", "--dense"], "--dense"),
        (["--keep", "0.5", "--eval-text", "/nowhere.txt"], "no such text"),
        (["--by", "joint-rank", "--latency", "1ms"], "joint-rank"),
        (["--by", "joint-rank", "--keep", "0.3"], "no lower ranks"),
        (["--by", "search", "--keep", "0.05"], "no architecture"),
        (["--by", "loraprune", "--keep", "0.05"], "no number of heads"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny, tmp_path, asked, why):
    result = shrink(tiny, "-o", tmp_path / "OUT", *asked, *QUICK, code=2)
    assert why in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("model.layers.1.mlp.up_proj.weight", lambda t: t[:48], "has shape [48, 64], config.json asks for [96, 64]"),
        ("model.layers.0.self_attn.k_proj.weight", lambda t: t[:0], "has shape [0, 64]"),
        ("model.layers.2.self_attn.o_proj.weight", lambda t: t.flatten(), "has shape [4096]"),
        ("model.embed_tokens.weight", lambda t: t[:100], "has shape [100, 64]"),
        ("model.norm.weight", lambda t: t[:63], "has shape [63]"),
    ],
)
@pytest.mark.parametrize("by", ["magnitude", "joint-rank"])
def test_tensors_of_other_shapes_are_refused_before_the_work(tiny, tmp_path, name, change, why, by):
    shutil.copytree(tiny, tmp_path / "source")
    tensors = load_file(tiny / "model.safetensors")
    save_file(tensors | {name: change(tensors[name]).contiguous()}, tmp_path / "source" / "model.safetensors")
    found = shrink(tmp_path / "source", "-o", tmp_path / "OUT", "--keep", 0.8, "--by", by, *QUICK, code=2).stderr
    assert f"{name} {why}" in found and not (tmp_path / "OUT").exists()


def test_a_type_that_is_no_name_is_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "source")
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": [1]}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    assert "dtype" in shrink(tmp_path / "source", "-o", tmp_path / "OUT", "--keep", 0.6, *QUICK, code=2).stderr


def _first_part(choice, **changed):
    parts = choice["cut"]["parts"]
    return {**choice, "cut": {**choice["cut"], "parts": [part | changed for part in parts]}}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda choice: choice, 0),
        (lambda choice: {**choice, "about": {"quality": {"kl": 0}, "parameters": 1}}, 0),  # what is not measured there
        (lambda choice: {**choice, "cut": None}, 2),
        (lambda choice: _first_part(choice, kv_heads=[1]), 2),
        (lambda choice: _first_part(choice, channels=[5]), 2),
        (lambda choice: {"cut": choice["cut"]}, 2),
    ],
)
def test_what_a_stopped_run_has_left_is_checked(tiny, tmp_path, monkeypatch, change, code):
    def stops(*_):
        raise KeyboardInterrupt

    asked = [tiny, "-o", tmp_path / "OUT", "--keep", 0.6, *QUICK, "--multiple", 8]
    with monkeypatch.context() as patch:
        patch.setattr("toolchain.shrink.run.written_report", stops)
        shrink(*asked, code=130)
    (left,) = tmp_path.glob("*.partial")
    choice = json.loads((left / "choice.json").read_text())
    (left / "choice.json").write_text(json.dumps(change(choice)))
    result = shrink(*asked, code=code)
    assert code == 0 or "is not what a run has left" in result.stderr
    if code == 0:
        report = json.loads((tmp_path / "OUT" / "shrink.json").read_text())
        assert report["quality"]["kl"] > 0 and report["parameters"]["after"] > 1
