"""4-bit floats from the solver to the answer: nearest codes, error feedback, a whole model in every runtime."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats.mxfp4 import BIAS, GROUP, HALVES, MXFP4_MATMUL
from export.contract.packing import unpack
from export.lowering import codebooks
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.session import Session
from tests.runtime_py.reference.test_session import OnnxRuntime
from tests.toolchain.quantize.test_quantize import problem, relative_loss
from toolchain.cli import app
from toolchain.quantize.solvers.mxfp4 import quantize
from toolchain.settings.quantize import QuantizeSettings


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 100),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-30, 1, 1e30]),
)
def test_rounding_takes_the_nearest_value_of_one_of_two_exponents(rows, columns, seed, scale):
    w = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    stored = quantize(w, np.eye(columns), QuantizeSettings(method="rtn", bits=4))
    codes = unpack(stored["codes"], 4, columns)
    step = np.repeat(2.0 ** (stored["scale"].astype(np.float64) - BIAS - 1), GROUP, axis=1)[:, :columns]
    distance = np.abs(w[..., None] - HALVES * step[..., None])
    chosen = np.take_along_axis(distance, codes[..., None].astype(np.intp), axis=2)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(axis=2), rtol=1e-12, atol=0)
    assert (np.abs(w) <= 12 * step * 4 / 3).all()  # the smaller exponent cuts off a third at most


def test_error_feedback_lowers_the_loss_and_the_record_is_true():
    w, h = problem(0, 64, 128)
    plain, fed = (quantize(w, h, QuantizeSettings(method=m, bits=4, format="mxfp4")) for m in ("rtn", "gptq"))
    losses = [relative_loss(stored, w, h) for stored in (plain, fed)]
    assert losses[1] < 0.8 * losses[0] and losses[1] == pytest.approx(fed.losses["sweep"], rel=1e-3)
    assert fed.stored("w")[1].effective_bits == 4.25


def test_zeros_and_extremes_are_finite():
    for w in (np.zeros((2, 40)), np.full((2, 40), 1e38), np.full((1, 1), -1e-40)):
        assert np.isfinite(quantize(w, np.eye(w.shape[1]), QuantizeSettings(method="rtn", bits=4)).dequantized()).all()


@pytest.fixture(scope="module")
def folder(demo_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("mxfp4") / "model"
    arguments = ["export", str(demo_model), "-o", str(out), "--format", "mxfp4", "--bits", "4", "--method", "gptq"]
    done = CliRunner().invoke(app, [*arguments, "--sequences", "8", "--sequence-length", "64", "--json"])
    assert done.exit_code == 0, done.output
    return out


def test_a_whole_model_is_the_same_in_every_runtime(folder):
    graph = read_graph(folder)
    assert sum(node.op_type == MXFP4_MATMUL for node in graph.nodes) == 28
    record = next(r for r in json.loads((folder / "athena.json").read_text())["tensors"] if r["scheme"] == "mxfp4")
    assert record["effective_bits"] == 4.25
    ids = np.random.default_rng(0).integers(3, 500, 40)
    stock, ours = OnnxRuntime(folder), Session(folder)
    expected = stock.run(ids[None], np.ones((1, 40), np.int64), np.arange(40)[None], stock.empty())[0][0]
    found = ours.forward(ours.new_state(), ids)
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()  # float32 sums in another order
    engine, why = open_model(folder)
    assert isinstance(engine, Engine), why
    logits = engine.forward(engine.new_state(), ids)
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * expected.std()


def test_it_is_lowered_and_priced(folder, tmp_path):
    done = CliRunner().invoke(
        app, ["lower", str(folder), "--target", "onnxruntime", "-o", str(tmp_path / "o"), "--json"]
    )
    assert done.exit_code == 0, done.output
    priced = CliRunner().invoke(app, ["cost", str(folder), "--target", "rpi5", "--json"])
    assert priced.exit_code == 0, priced.output


@pytest.mark.parametrize(
    "name, value",
    [
        ("tune_steps", 2),
        ("block_steps", 2),
        ("rank", 4),
        ("group_size", 32),
        ("rows_per_codebook", 2),
        ("scale_bits", 8),
    ],
)
def test_what_it_cannot_have_is_refused_before_the_work(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} does not go with --format mxfp4"):
        QuantizeSettings(format="mxfp4", bits=4, **{name: value})
    with pytest.raises(InputError, match="--format mxfp4 takes --bits 4"):
        QuantizeSettings(format="mxfp4", bits=3)


def test_matrices_that_share_a_part_are_expanded_apart(folder):
    """Two products of the same codes and other scales, and one that another node reads, too."""
    graph = read_graph(folder)
    first, second = [n for n in graph.nodes if n.op_type == MXFP4_MATMUL and n.attributes["N"] == n.attributes["K"]][:2]
    mixed = replace(second, inputs=(second.inputs[0], first.inputs[1], second.inputs[2]))
    changed = replace(graph, nodes=tuple(mixed if n is second else n for n in graph.nodes))
    found = expand_products(changed)
    expanded = {n.name: n for n in found.nodes}
    for node in (first, mixed):
        wide = expanded[node.name]
        expected = node.matrix_layout().dequantized(*(graph.weights[name] for name in node.inputs[1:]))
        given = wide.layout().dequantized(*(found.weights[name] for name in wide.inputs[1:]))
        np.testing.assert_array_equal(given, expected)


def test_a_matrix_that_layers_share_is_lowered_once(folder):
    model = ir.load(folder / "model.onnx")
    products = [n for n in model.graph if n.op_type == MXFP4_MATMUL]
    shared = [n for n in products if n.attributes["N"].as_int() == n.attributes["K"].as_int()]
    for node in shared[1:]:
        for place in (1, 2):
            node.replace_input_with(place, shared[0].inputs[place])
    assert codebooks.run(model) == (28, [])
    lowered = [n for n in model.graph if n.name in {node.name for node in shared}]
    assert len(lowered) == len(shared) > 1 and len({tuple(n.inputs[1:]) for n in lowered}) == 1
