"""End-to-end tuning: what is trained is what is stored, KL falls on unseen text, and a killed run resumes exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from export.artefacts.checkpoint import QuantizedCheckpoint
from toolchain.quantize import method
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.tuning import AUTOMATIC, SHORT
from toolchain.tune.end_to_end import STATE_FILE
from toolchain.tune.trainable.codebook import TrainableLinear
from toolchain.tune.trainable.trellis import TrainableTrellis


@settings(max_examples=25)
@example("athena", 1, 22, 2, 0, 0, 0, 90)  # the coarsest scale level once lay below the largest int8
@given(
    st.sampled_from(["athena", "rtn"]), st.integers(1, 5), st.integers(1, 30), st.integers(2, 50),
    st.sampled_from([0, 16]), st.sampled_from([0, 16]), st.sampled_from([0, 2]), st.integers(0, 1000),
)  # fmt: skip
def test_trained_weights_are_stored_exactly(name, bits, rows, columns, group, scale_bits, rank, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * 0.1
    x = rng.standard_normal((100, columns))
    options = QuantizeSettings(method=name, bits=bits, group_size=group, scale_bits=scale_bits, passes=1, rank=rank)
    stored = method(name)(w, x.T @ x, options)
    layer = TrainableLinear(nn.Linear(columns, rows), stored)
    # untouched, the layer is the stored matrix, up to levels that lie exactly between two codebook entries
    np.testing.assert_allclose(layer.weight_matrix().detach().numpy(), stored.dequantized(), atol=1e-6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    target = torch.from_numpy(rng.standard_normal((8, columns)).astype(np.float32))
    for _ in range(3):
        layer(target).square().sum().backward()
        optimizer.step()
    trained = layer.weight_matrix().detach().numpy()
    again = layer.to_stored(stored.losses)
    np.testing.assert_allclose(again.dequantized(), trained, atol=1e-6 * max(1.0, np.abs(trained).max()))
    assert again.stored("w")[1].bytes == stored.stored("w")[1].bytes


def command(demo_model, text, out, steps):
    base = [
        sys.executable,
        "-m",
        "toolchain",
        "quantize",
        str(demo_model),
        "-o",
        str(out),
        "--bits",
        "2",
        "--preset",
        "fast",
    ]
    tune = ["--passes", "1", "--tune-steps", str(steps), "--tune-batch", "4", "--tune-length", "128"]
    return [*base, "--sequences", "16", "--sequence-length", "128", *tune, "--calibration", str(text),
            "--calibration-part", "0:0.5"]  # fmt: skip


def test_tuning_lowers_the_divergence_on_unseen_text(demo_model, demo_text, tmp_path):
    from export.model_folder import install_folder
    from toolchain.calibrate import text as calibration
    from toolchain.evaluate.perplexity import evaluate, open_scorer, windows_of
    from toolchain.pipeline.packaging import package_checkpoint

    text = calibration.slice_text(calibration.read_text(demo_text), "0.5:1")
    windows = windows_of(text, calibration.load_tokenizer(demo_model), 128, 20, "text")
    results = {}
    for steps in (0, 60):
        out = tmp_path / f"q{steps}"
        subprocess.run(command(demo_model, demo_text, out, steps), check=True, capture_output=True)
        folder = tmp_path / f"m{steps}"
        install_folder(package_checkpoint(QuantizedCheckpoint(out), folder, quiet=True), folder, force=False)
        results[steps] = evaluate(open_scorer(str(folder)), windows, open_scorer(str(demo_model)), quiet=True)
        bits = QuantizedCheckpoint(out).manifest["totals"]["effective_bits"]
        assert bits == pytest.approx(2.07, abs=0.02)  # the same bits, better used
    assert results[60].kl < 0.85 * results[0].kl
    assert sorted(p.name for p in (tmp_path / "q60").glob("*.safetensors"))[0].startswith("tuned-")


@pytest.mark.long
def test_kill_9_during_tuning_resumes_to_identical_bytes(demo_model, demo_text, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = "import toolchain.tune.end_to_end as t; t._SAVE_INTERVAL = 0.0; from toolchain.cli import main; main()"

    def run(out):
        return [sys.executable, "-c", code, *command(demo_model, demo_text, out, 40)[3:]]

    subprocess.run(run(tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen(run(out), stderr=subprocess.DEVNULL)
    while not (out / STATE_FILE).exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "tuned-outside.safetensors").exists()
    subprocess.run(run(out), check=True, capture_output=True)
    files = {p.name: p.read_bytes() for p in sorted(out.iterdir())}
    assert files == {p.name: p.read_bytes() for p in sorted((tmp_path / "whole").iterdir())}
    assert STATE_FILE not in files


def test_learning_rates_follow_the_width_of_each_layer():
    from toolchain.tune.end_to_end import TuneSettings, default_rate
    from toolchain.tune.microbatch import code_widths
    from toolchain.tune.trainable import trainable_layer

    w = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    student = nn.Sequential()
    for i, options in enumerate(
        ({"bits": 2}, {"bits": 4}, {"bits": 2, "format": "vectors", "dimension": 4}, {"bits": 3, "format": "trellis"})
    ):
        stored = method("athena")(w, np.eye(64), QuantizeSettings(passes=1, **options))
        student.add_module(str(i), trainable_layer(nn.Linear(64, 16), stored))
    widths = code_widths(student)
    assert [widths[f"{i}.latent"] for i in range(4)] == [2, 4, 2, 3] and "0.bias" not in widths
    automatic, fixed = TuneSettings(500, 0.0, 3), TuneSettings(500, 0.001, 3)
    assert automatic.rate_of(4, True, 1.0) == automatic.rate_of(2, True, 1.0) / 4 == default_rate(4)
    assert automatic.rate_of(None, False, 1.0) == default_rate(3)
    assert fixed.rate_of(2, True, 1.0) == fixed.rate_of(None, False, 1.0) == 0.001


def test_few_tokens_a_weight_move_codes_more_than_the_rest():
    from toolchain.tune.end_to_end import TuneSettings, default_rate

    automatic, asked = TuneSettings(90, 0.0, 3), TuneSettings(90, 0.001, 3)
    for tokens in (0.0, 0.0014):
        assert automatic.rate_of(3, True, tokens) == pytest.approx(0.006)
        assert automatic.rate_of(None, False, tokens) == pytest.approx(0.000975)
    assert automatic.rate_of(None, False, 0.05) == pytest.approx(default_rate(3) / 2)
    assert asked.rate_of(3, True, 0.0) == 0.001 and asked.rate_of(None, False, 0.0) < 0.0002


def test_held_paths_stay_until_released():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 64))
    stored = method("athena")(w, np.eye(64), QuantizeSettings(bits=2, format="trellis", passes=1))
    layer = TrainableTrellis(nn.Linear(64, 16), stored)
    layer.hold(True)
    before = layer.weight_matrix().detach()
    with torch.no_grad():
        layer.latent.copy_(torch.from_numpy(rng.standard_normal((16, 64)).astype(np.float32)))
    assert torch.equal(layer.weight_matrix().detach(), before)
    layer.hold(False)
    assert not torch.equal(layer.weight_matrix().detach(), before)
    assert torch.equal(layer.weight_matrix().detach(), torch.from_numpy(layer.to_stored({}).dequantized()))


def test_paths_go_by_what_rows_weigh():
    rng = np.random.default_rng(0)
    w, wanted = rng.standard_normal((2, 32, 64))
    stored = method("athena")(w, np.eye(64), QuantizeSettings(bits=2, format="trellis", passes=1))
    weights, errors = np.where(np.arange(32) % 2, 20.0, 0.5).astype(np.float32), []
    for rows in (None, weights):
        layer = TrainableTrellis(nn.Linear(64, 32), stored)
        with torch.no_grad():
            layer.latent.copy_(torch.from_numpy(wanted))
        if rows is not None:
            layer.weigh(torch.from_numpy(rows))
        found = layer.weight_matrix().detach().numpy()
        errors.append(weights @ np.square(found - wanted).sum(axis=1))
        np.testing.assert_array_equal(layer.to_stored({}).dequantized(), found)
    assert errors[1] < 0.8 * errors[0]


def test_automatic_steps_fall_with_the_size():
    def steps(parameters):
        return QuantizeSettings(tune_steps=AUTOMATIC).steps_for(parameters)

    assert [steps(10**6), steps(10**10)] == [2000, 60] and 60 < steps(134_000_000) < 120
    assert QuantizeSettings(tune_steps=7).steps_for(10**10) == 7
    short = QuantizeSettings(tune_steps=SHORT)
    assert [short.steps_for(n) for n in (10**6, 19_000_000, 10**9)] == [0, 0, 0] and short.steps_for(134_000_000) > 10


def _two_layers():
    from toolchain.tune.microbatch import trainable_parameters
    from toolchain.tune.trainable import trainable_layer

    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    stored = method("athena")(w, np.eye(16), QuantizeSettings(bits=3, passes=1))
    student = nn.Sequential(*(trainable_layer(nn.Linear(16, 16, bias=False), stored) for _ in range(2)))
    trainable_parameters(student)
    return student


@pytest.mark.parametrize("unused", [None, 0, 1])
def test_pieces_sum_to_the_gradient_of_all_windows(unused):
    """Also where a piece does not come by a layer, as by an expert: the others' turns go on."""
    from toolchain.tune.microbatch import accumulate

    x, found = torch.randn(7, 5, 16, generator=torch.Generator().manual_seed(0)), []
    for pieces in (True, False):
        student = _two_layers()

        def layer_of(window, index, x, student=student):
            return x if index == unused and window % 3 == 1 else student[index](x)

        def loss_of(part):
            losses = [layer_of(i, 1, layer_of(i, 0, x[i])).square().mean() for i in range(part.start, part.stop)]
            return torch.stack(losses).mean()

        if pieces:
            loss = accumulate(student, loss_of, len(x))
        else:
            whole = loss_of(slice(0, len(x)))
            whole.backward()
            assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
        found.append([p.grad for p in student.parameters() if p.requires_grad])
    for summed, whole in zip(*found):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_a_piece_that_fails_ends_the_step_with_its_error(wrong):
    from toolchain.tune.microbatch import accumulate

    student, x = _two_layers(), torch.ones(6, 5, 16)

    def loss_of(part):
        if part.start == wrong:
            raise MemoryError("no room")
        return student(x[part]).square().mean()

    with pytest.raises(MemoryError, match="no room"):
        accumulate(student, loss_of, len(x))
    assert student[0].current is None
