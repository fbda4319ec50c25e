"""The streaming quantizer on the bundled model: resume after kill -9, changed settings, disk full, bad text."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from export.artefacts.checkpoint import QuantizedCheckpoint, block_shard
from export.contract.errors import InputError
from toolchain.calibrate.text import sample_sequences, slice_text
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.presets import Quantization

FAST = Quantization.from_given({"bits": 3, "passes": 1, "sequences": 16, "sequence_length": 128}).settings


def command(demo_model, text, out, *extra):
    base = [sys.executable, "-m", "toolchain", "quantize", str(demo_model), "-o", str(out), "--bits", "3"]
    return [*base, "--passes", "1", "--sequences", "16", "--sequence-length", "128", "--calibration", str(text), *extra]


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def finished(demo_model, demo_text, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "q"
    quantize_model(str(demo_model), out, FAST, CalibrationChoice(str(demo_text)), quiet=True)
    return out


def test_kill_9_and_resume_gives_identical_bytes(demo_model, demo_text, finished, tmp_path):
    out = tmp_path / "q"
    process = subprocess.Popen(command(demo_model, demo_text, out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / block_shard(1)).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "outside.safetensors").exists()
    done = subprocess.run(command(demo_model, demo_text, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming at block" in done.stderr
    assert contents(out) == contents(finished)


def test_ctrl_c_is_one_clean_line_and_resumable(demo_model, demo_text, finished, tmp_path):
    out = tmp_path / "q"
    for _ in range(5):  # the five small blocks may all be done before the signal arrives: then once more
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            command(demo_model, demo_text, out), stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
        )  # fmt: skip
        while not (out / block_shard(0)).exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "run the same command again to continue" in errors and "Traceback" not in errors
    quantize_model(str(demo_model), out, FAST, CalibrationChoice(str(demo_text)), quiet=True)
    assert contents(out) == contents(finished)


def test_changed_settings_are_refused_by_name(demo_model, demo_text, finished, tmp_path):
    out = tmp_path / "q"
    shutil.copytree(finished, out)
    text = CalibrationChoice(str(demo_text))
    changed = dataclasses.replace(FAST, bits=4)
    with pytest.raises(InputError, match="bits was 3, now 4"):
        quantize_model(str(demo_model), out, changed, text, quiet=True)
    with pytest.raises(InputError, match="the calibration changed"):
        quantize_model(str(demo_model), out, FAST, CalibrationChoice(str(demo_text), "0:0.5"), quiet=True)
    assert contents(out) == contents(finished)
    quantize_model(str(demo_model), out, changed, text, restart=True, quiet=True)
    assert QuantizedCheckpoint(out).manifest["settings"]["bits"] == 4


def test_foreign_folder_is_not_touched(demo_model, demo_text, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is not a quantized checkpoint"):
        quantize_model(str(demo_model), tmp_path, FAST, CalibrationChoice(str(demo_text)), quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.long  # test_faults.py has a full disk in `make test`
def test_disk_full_removes_the_partial_file_and_resumes(demo_model, demo_text, finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        result = subprocess.run(command(demo_model, demo_text, disk / "q"), capture_output=True, text=True)
        assert result.returncode == 1
        assert "disk is full" in result.stderr and "Traceback" not in result.stderr
        assert not [p for p in (disk / "q").iterdir() if p.name.endswith(".tmp")]
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert subprocess.run(command(demo_model, demo_text, disk / "q"), capture_output=True).returncode == 0
        assert contents(disk / "q") == contents(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_not_finite_weights_stop_before_anything_is_lost(demo_model, demo_text, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(demo_model, source, copy_function=shutil.copyfile)
    source.chmod(0o755)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.3.self_attn.o_proj.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors")
    # a plan, or gradients, would read all weights first
    equal = dataclasses.replace(FAST, spread=False, guided=False, gradient_sequences=0)
    with pytest.raises(InputError, match=r"layers\.3\.self_attn\.o_proj\.weight holds NaN"):
        quantize_model(str(source), tmp_path / "q", equal, CalibrationChoice(str(demo_text)), quiet=True)
    assert (tmp_path / "q" / block_shard(2)).exists() and not (tmp_path / "q" / block_shard(3)).exists()
    with pytest.raises(InputError, match=r"layers\.3\.self_attn\.o_proj\.weight holds NaN"):
        quantize_model(str(source), tmp_path / "planned", FAST, CalibrationChoice(str(demo_text)), quiet=True)


def test_calibration_text_too_short_or_of_another_vocabulary(demo_model, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time")
    with pytest.raises(InputError, match=r"short\.txt: calibration text has 5 tokens, one sequence needs 128"):
        quantize_model(str(demo_model), tmp_path / "q", FAST, CalibrationChoice(str(short)), quiet=True)
    from toolchain.calibrate.text import load_tokenizer

    with pytest.raises(InputError, match="do not belong together"):
        sample_sequences("Once upon a time " * 50, load_tokenizer(demo_model), 1, 16, 0, 100, "text")
    with pytest.raises(InputError, match="expected START:STOP"):
        slice_text("abc", "0.5")
    with pytest.raises(InputError, match="no such text file"):
        quantize_model(str(demo_model), tmp_path / "q", FAST, CalibrationChoice(str(tmp_path / "none.txt")), quiet=True)
    assert not (tmp_path / "q").exists()


def test_quantized_block_states_are_what_later_blocks_see(demo_checkpoint):
    """Losses of every layer fall from clustering to the end, and all records are complete."""
    for record in demo_checkpoint.records.values():
        if record.scheme == "codebook" and "layers" in record.name:
            losses = record.losses
            assert losses["clustering"] >= losses["sweep"] >= losses["refinement"] > 0
    totals = demo_checkpoint.manifest["totals"]
    assert 3.0 < totals["effective_bits"] < 3.15
    shards = sum(p.stat().st_size for p in demo_checkpoint.folder.glob("*.safetensors"))
    assert totals["bytes"] <= shards  # the rest is safetensors' headers


def test_hessian_accumulates_every_token(demo_model, demo_text):
    """BlockRunner's H of the first block equals the definition 2/T sum x x^T on transformers' own forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    from export.graph.archs import model_spec
    from toolchain.calibrate.blocks import BlockRunner
    from toolchain.source.checkpoint import SourceModel

    source = SourceModel(demo_model)
    spec = model_spec(source.config)
    runner = BlockRunner(source, spec)
    tokens = np.random.default_rng(0).integers(3, 500, (3, 20))
    hidden = runner.embed(tokens)
    block = runner.load_block(0)
    hessians, outputs = runner.hessians(block, spec.block.linears(), hidden)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    seen = []
    layer = model.model.layers[0]
    layer.mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().double().numpy()[0]))
    with torch.no_grad():
        states = [model(torch.from_numpy(t[None]), output_hidden_states=True).hidden_states[1] for t in tokens]
    expected = sum(2 * x.T @ x for x in seen) / tokens.size
    np.testing.assert_allclose(hessians["mlp.down_proj"], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(outputs.numpy(), torch.cat(states).numpy(), atol=1e-5)
    assert hessians["self_attn.q_proj"] is hessians["self_attn.v_proj"]


def test_manifest_is_readable_by_people(finished):
    manifest = json.loads((finished / "athena.json").read_text())
    assert manifest["settings"] == FAST.to_json()
    assert {"source", "calibration", "fingerprint", "totals", "tensors"} <= set(manifest)
