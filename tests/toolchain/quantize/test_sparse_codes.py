"""Sparse codes from the mask to the answer: what is kept, least squares, losses that are true, a whole model."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats.sparse_codes import SPARSE_CODES_MATMUL, SparseCodesLayout, largest
from export.contract.packing import pack, unpack
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.runtime_py.reference.test_session import OnnxRuntime
from tests.toolchain.quantize.test_quantize import problem, relative_loss
from toolchain.cli import app
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize import quantizer
from toolchain.quantize.methods import slim
from toolchain.quantize.solvers import sparse_codes
from toolchain.quantize.solvers.sparse_codes import compensated, quantize
from toolchain.settings.presets import Quantization
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import FORMAT_SOLVERS

STEPS = ["mask", "compensation", "sweep", "refinement", "coded_scales"]


def kept_by_loops(scores, kept, run):
    """The mask, slowly: of each run the highest scores, of equal ones the first."""
    out = np.zeros(scores.shape, np.uint8)
    for row in range(len(scores)):
        for start in range(0, scores.shape[1], run):
            own = list(range(start, min(start + run, scores.shape[1])))
            for column in sorted(own, key=lambda k: (-scores[row, k], k))[:kept]:
                out[row, column] = 1
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 50), st.data())
def test_the_largest_of_every_run_are_kept(rows, columns, run, data):
    kept = data.draw(st.integers(1, run))
    scores = np.random.default_rng(run).integers(0, 4, (rows, columns)).astype(np.float64)
    np.testing.assert_array_equal(largest(scores, kept, run), kept_by_loops(scores, kept, run))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 99))
def test_what_is_kept_takes_over_what_is_not(rows, columns, seed):
    """The least squares of each row alone, by a direct solution in its own columns."""
    w, h = problem(seed, rows, columns)
    h = damped(h, 0.05)[0]
    mask = largest(np.random.default_rng(seed).random(w.shape), 1, 2)
    found = compensated(w, mask, h)
    for row in range(rows):
        own = mask[row] == 1
        exact = np.linalg.solve(h[np.ix_(own, own)], h[own] @ w[row])
        scale = np.abs(exact).max() + np.abs(w[row]).max()
        # conjugate gradients stop at 1e-10 of the squared residual
        np.testing.assert_allclose(found[row, own], exact, rtol=0, atol=1e-3 * scale)
        assert not found[row, ~own].any()


def test_rows_do_not_depend_on_those_beside_them(monkeypatch):
    w, h = problem(4, 37, 24)
    mask = largest(np.abs(w), 2, 4)
    whole = compensated(w, mask, damped(h, 0.05)[0])
    monkeypatch.setattr(sparse_codes, "_SLAB", 5)
    # conjugate gradients end where all rows of a slab are done, at 1e-10 of the squared residual
    np.testing.assert_allclose(compensated(w, mask, damped(h, 0.05)[0]), whole, rtol=0, atol=1e-3 * np.abs(w).max())


@settings(max_examples=15, deadline=None)
@given(
    bits=st.integers(1, 5), rows=st.integers(1, 20), columns=st.integers(2, 70),
    sparsity=st.sampled_from(["2:4", "1:4", "3:4", "0.5", "0.9"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_steps_never_raise_the_loss_and_the_record_is_true(bits, rows, columns, sparsity, seed):
    w, h = problem(seed, rows, columns)
    stored = quantize(w, h, QuantizeSettings(bits=bits, sparsity=sparsity))
    losses = [stored.losses[name] for name in STEPS]
    assert losses[1] <= losses[0] * (1 + 1e-9) and losses[3] <= losses[2] * (1 + 1e-9)
    assert relative_loss(stored, w, h) == pytest.approx(losses[-1], rel=1e-3, abs=1e-6)  # scales are float32 products
    layout = stored.layout
    mask = unpack(stored["mask"], 1, columns)
    assert isinstance(layout, SparseCodesLayout) and mask.sum() == rows * layout.kept_columns
    assert not stored.dequantized()[mask == 0].any()


def test_the_full_hessian_beats_slim_and_a_low_rank_term_helps_both():
    w, h = problem(0, 96, 128)
    found = {
        (name, rank): relative_loss(quantizer(options)(w, h, options), w, h)
        for name in ("athena", "slim")
        for rank in (0, 12)
        if (options := QuantizeSettings(method=name, bits=4, sparsity="2:4", rank=rank))
    }
    assert found["athena", 0] < 0.8 * found["slim", 0] and found["athena", 12] < 0.8 * found["slim", 12]
    assert all(found[name, 12] < found[name, 0] for name in ("athena", "slim"))


def test_slim_has_one_even_scale_whose_clipping_point_loses_least():
    rng = np.random.default_rng(0)
    w = rng.standard_t(4, (64, 64)) * 0.02
    stored = slim.quantize(w, np.eye(64), QuantizeSettings(method="slim", bits=4, sparsity="2:4"))
    assert stored["scale"].shape == (1, 1) and stored["codebook"].tolist() == [[*range(-7, 8), 7]]
    kept = w[unpack(stored["mask"], 1, 64) == 1]

    def loss(step):
        return ((kept - np.clip(np.rint(kept / step), -7, 7) * step) ** 2).sum()

    best = min(loss(clip / 7) for clip in np.linspace(0.05, 1, 400) * np.abs(kept).max())
    assert loss(float(stored["scale"][0, 0])) < 1.03 * best  # of 11 and 21 points, on a histogram


def test_four_bits_of_half_the_weights_are_three_bits():
    w, h = problem(1, 256, 512)
    _, record = quantize(w, h, QuantizeSettings(bits=4, sparsity="2:4")).stored("w")
    assert 3.0 < record.effective_bits < 3.1
    layout = SparseCodesLayout(4, 512, 256, 2, 4)
    assert layout.weight_bits == 3.0 and layout.density == 0.5


def test_a_mask_that_keeps_others_is_refused():
    layout = SparseCodesLayout(4, 8, 1, 2, 4)
    rng = np.random.default_rng(0)
    parts = {name: layout.random(name, rng, 0.02) for name in layout.parts()}
    for mask in ([1, 1, 1, 0, 1, 0, 0, 0], [1] * 8, [0] * 8):
        parts["mask"] = pack(np.array([mask], np.uint8), 1)
        with pytest.raises(ValueError, match="mask does not keep 2 weights of every 4"):
            layout.dequantized(*parts.values())


@pytest.mark.parametrize(
    "wrong", ["", "4:2", "2:2", "0:4", "2:", ":4", "2:x", "1:257", "0", "1", "-0.5", "nan", "half"]
)
def test_what_is_no_pattern_is_refused(wrong):
    with pytest.raises(InputError, match=re.escape(f"--sparsity {wrong!r}: 2:4 keeps two")):
        QuantizeSettings(bits=4, sparsity=wrong)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"format": "sparse_codes"}, "--sparsity goes with --format sparse_codes"),
        ({"sparsity": "2:4", "format": "trellis"}, "--sparsity goes with --format sparse_codes"),
        ({"sparsity": "2:4", "bits": 8}, "--sparsity takes --bits 1 to 7"),
        ({"sparsity": "2:4", "budget": 3.1}, "--sparsity takes --bits 1 to 7"),
        ({"sparsity": "2:4", "method": "gptq"}, "--format sparse_codes is for --method athena, slim; gptq has"),
        ({"sparsity": "2:4", "tune_steps": 5}, "--tune-steps does not go with --format sparse_codes"),
        ({"method": "slim"}, "--sparsity goes with --format sparse_codes"),
    ],
)
def test_what_does_not_go_together_is_refused(options, named):
    with pytest.raises(InputError, match=re.escape(named)):
        QuantizeSettings(**options)


def test_presets_leave_out_what_sparse_codes_exclude():
    for given_options in ({"sparsity": "2:4"}, {"method": "slim"}, {"method": "slim", "sparsity": "0.5", "bits": 3}):
        found = Quantization.from_given(given_options).settings
        assert found.format == "sparse_codes" and not (found.spread or found.guided or found.tune_steps)
        assert quantizer(found) is (slim.quantize if found.method == "slim" else quantize)
    assert Quantization.from_given({"method": "slim"}).settings.sparsity == "2:4"


@pytest.mark.parametrize("options", [["--sparsity", "2:4"], ["--method", "slim", "--rank", "4"]])
def test_a_whole_model_is_the_same_in_every_runtime(options, demo_model, tmp_path):
    out = tmp_path / "model"
    arguments = ["export", str(demo_model), "-o", str(out), "--bits", "4", *options]
    done = CliRunner().invoke(app, [*arguments, "--sequences", "8", "--sequence-length", "64", "--json"])
    assert done.exit_code == 0, done.output
    graph = read_graph(out)
    assert sum(node.op_type == SPARSE_CODES_MATMUL for node in graph.nodes) == 28
    records = json.loads((out / "athena.json").read_text())["tensors"]
    assert all(r["bits"] == 4 for r in records if r["scheme"] == "sparse_codes")
    ids = np.random.default_rng(0).integers(3, 500, 40)
    stock, ours = OnnxRuntime(out), Session(out)
    expected = stock.run(ids[None], np.ones((1, 40), np.int64), np.arange(40)[None], stock.empty())[0][0]
    found = ours.forward(ours.new_state(), ids)
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()  # float32 sums in another order


def test_an_engine_runs_them(demo_model, tmp_path):
    """With int8 activations, as a codebook of a bit more; lowered and priced like other formats."""
    out = tmp_path / "model"
    arguments = ["export", str(demo_model), "-o", str(out), "--bits", "4", "--sparsity", "2:4", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--sequences", "4", "--sequence-length", "64", "--preset", "fast"])
    assert done.exit_code == 0, done.output
    ids = np.random.default_rng(0).integers(3, 500, 20)
    reference = Session(out)
    expected = reference.forward(reference.new_state(), ids)
    engine, why = open_model(out, "int8")
    assert isinstance(engine, Engine), why
    logits = engine.forward(engine.new_state(), ids)
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * expected.std()
    lowered = ["lower", str(out), "--target", "onnxruntime", "-o", str(tmp_path / "o"), "--json"]
    for command in (lowered, ["cost", str(out), "--target", "rpi5", "--json"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("words", [["--sparsity", "2:4"], ["--method", "slim"], ["--format", "mxfp4"]])
def test_random_folders_have_the_layout_of_real_ones(words, tmp_path):
    out = tmp_path / "model"
    done = CliRunner().invoke(app, ["export", "--random", "scribe-6m", "-o", str(out), "--bits", "4", *words, "--json"])
    assert done.exit_code == 0, done.output
    records = [r for r in json.loads((out / "athena.json").read_text())["tensors"] if r["scheme"] in FORMAT_SOLVERS]
    assert len(records) == 42 and all(r["effective_bits"] < 4.3 for r in records)
    engine, why = open_model(out)
    assert isinstance(engine, Engine), why


def test_the_loss_of_the_mask_is_that_of_dropping():
    w, h = problem(2, 8, 32)
    stored = quantize(w, h, QuantizeSettings(bits=4, sparsity="2:4"))
    mask = unpack(stored["mask"], 1, 32)
    h = damped(h, 0.01)[0]
    assert stored.losses["mask"] == pytest.approx(layer_loss(w * (1 - mask), h) / layer_loss(w, h))
