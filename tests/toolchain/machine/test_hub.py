"""`models`: the hub's cache, its broken entries too, and sizes that exports have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import DEMO
from toolchain.machine.fit import CONTEXT, RUNTIME, Sizes
from toolchain.source.heads import open_model


def models(cache, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", "models", *arguments],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "COLUMNS": "80", "HF_HUB_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cached(cache, name, make):
    """A model of the hub's cache as huggingface_hub lays it out; make(folder) fills its one snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    make(snapshot)
    return snapshot


def _broken(folder):
    shutil.copy(DEMO / "config.json", folder)


def _pickled(folder):
    shutil.copy(DEMO / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _unknown(folder):
    shutil.copy(DEMO / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "[red]new[/red]"}))


def _not_json(folder):
    (folder / "config.json").write_bytes(b"\xff{")


def _gguf(folder):
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for part in (1, 2):  # of another model, which is listed once
        (folder / f"p-{part:05}-of-00002.gguf").write_bytes(b"GGUF")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    cached(cache, "good/demo", lambda folder: shutil.copytree(DEMO, folder, dirs_exist_ok=True))
    for name, make in (("no-weights", _broken), ("pickle", _pickled), ("unknown", _unknown), ("json", _not_json),
                       ("empty", lambda folder: None), ("one-gguf", _gguf)):  # fmt: skip
        cached(cache, f"bad/{name}", make)
    (cache / "models--half").mkdir()  # a download that was broken off
    (cache / "datasets--one--two" / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (cache / "note.txt").write_text("not of the cache")
    return cache


def test_every_model_has_sizes_or_a_reason(cache):
    found = {one["name"].rpartition("/")[2]: one for one in json.loads(models(cache, "--json"))["models"]}
    assert found.keys() == {
        "demo",
        "no-weights",
        "pickle",
        "unknown",
        "json",
        "empty",
        "m.gguf",
        "p-00001-of-00002.gguf",
    }
    demo = found.pop("demo")
    assert demo["refused"] is None and demo["model_type"] == "llama" and demo["parameters"] > 1_000_000
    assert found["empty"]["refused"] == "config.json: this file is missing"
    assert all(one["refused"] and "\n" not in one["refused"] and one["parameters"] is None for one in found.values())


def test_the_table(cache):
    text = models(cache)
    assert "good/demo" in text and "2 bits" in text and "free here" in text
    assert "bad/unknown: not exported: " in text and "[red]new[/red]" in text
    assert max(len(line) for line in text.splitlines() if "not exported" not in line) <= 80


def test_an_empty_cache(tmp_path):
    assert "holds no models" in models(tmp_path / "none")
    assert json.loads(models(tmp_path / "none", "--json"))["models"] == []


def test_stored_bytes_are_those_of_an_export(demo_folder):
    """demo_folder: the bundled model at 3 bits."""
    source, spec = open_model(DEMO)
    sizes = Sizes.of(spec, source.config)
    manifest = json.loads((demo_folder / "athena.json").read_text())
    assert sizes.parameters == manifest["totals"]["parameters"]
    wanted = manifest["totals"]["bytes"]
    assert sizes.stored(manifest["totals"]["effective_bits"] - 0.1) == pytest.approx(wanted, rel=0.02)
    cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * min(spec.context_length, CONTEXT)
    assert sizes.running(3) == sizes.stored(3) + cache + RUNTIME
