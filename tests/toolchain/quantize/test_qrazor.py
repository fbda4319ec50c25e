"""The qrazor method end to end on real models: quantize, export, run, and the same integers in onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.sdr import SdrFormat
from export.graph.integers import hadamard, rotation_size
from export.model_folder import write_model_folder
from runtime_py.engine.engine import Engine
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.conftest import DEMO
from tests.toolchain.quantize.test_quantize import problem
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.quantize.methods import athena, qrazor
from toolchain.quantize.solvers import razored_entries as entries
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings


def _folder(model: Path, out: Path, **settings) -> Path:
    razor = RazorSettings(**{"activation_bits": 4, **settings.pop("razor", {})})
    chosen = QuantizeSettings(
        **{"method": "qrazor", "bits": 4, "sequences": 16, "sequence_length": 128, **settings}, razor=razor
    )
    checkpoint = quantize_model(str(model), out / "quantized", chosen, CalibrationChoice(), quiet=True)
    (out / "model").mkdir()
    write_model_folder(checkpoint, out / "model")
    return out / "model"


@pytest.fixture(scope="module")
def razored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with weights, activations and cache in 4 bits."""
    return _folder(DEMO, tmp_path_factory.mktemp("qrazor"), razor={"kv": 4})


def _onnxruntime(folder: Path, ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits and caches of one pass over the whole sequence."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, ids.size), np.int64),
        "position_ids": np.arange(ids.size)[None],
    }
    for info in session.get_inputs():
        if info.name.startswith("past"):
            assert info.type == "tensor(uint8)"
            feeds[info.name] = np.zeros((1, info.shape[1], 0, info.shape[3]), np.uint8)
    logits, *caches = session.run(None, feeds)
    return logits[0], caches


def test_onnxruntime_and_the_interpreter_keep_the_same_cache(razored: Path) -> None:
    """Cached codes are integers of a whole forward pass behind them: nearly all the same although floats differ by
    their last bit before they are rounded; a code at a border may then differ by one step, and what follows it."""
    ids = np.random.default_rng(0).integers(3, 500, 40)
    logits, caches = _onnxruntime(razored, ids)
    session = Session(razored)
    state = session.new_state()
    ours = session.forward(state, ids)
    names = list(state.keys)
    same = [np.mean(caches[2 * i] == state.keys[n]) for i, n in enumerate(names)]
    same += [np.mean(caches[2 * i + 1] == state.values[n]) for i, n in enumerate(names)]
    assert same[0] == 1.0 and min(same) > 0.98  # the first layer's keys see no rounding of an earlier layer
    assert np.mean(logits.argmax(1) == ours.argmax(1)) > 0.9
    assert caches[0].shape[-1] == 32 // 2 + 1  # 32 codes of 4 bits, and two flags of 4


def test_the_engine_plans_it_and_agrees(razored: Path) -> None:
    model, why = open_model(razored)
    assert isinstance(model, Engine), why
    ids = np.random.default_rng(1).integers(3, 500, 60)
    engine, plain = model.forward(model.new_state(), ids), Session(razored).forward(Session(razored).new_state(), ids)
    assert np.mean(engine.argmax(1) == plain.argmax(1)) > 0.9
    state = model.new_state()
    model.forward(state, ids[:50])
    step = np.concatenate([model.forward(state, [t]) for t in ids[50:]])
    assert np.mean(step.argmax(1) == engine[50:].argmax(1)) > 0.8
    assert model.cache_bytes_per_token * 3 < 4 * 2 * 2 * 32 * 2  # against float16: 4 layers, 2 heads of 32 (padded)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_every_width_that_is_exported_runs(bits: int, tmp_path: Path) -> None:
    """Flags and codes beyond what the compiled product reads go to the interpreter, not to an error."""
    folder = _folder(DEMO, tmp_path, bits=bits, sequences=4, sequence_length=64)
    model, _ = open_model(folder)
    ids = np.random.default_rng(3).integers(3, 500, 30)
    found, plain = model.forward(model.new_state(), ids), Session(folder).forward(Session(folder).new_state(), ids)
    assert np.isfinite(found).all()
    assert np.mean(found.argmax(1) == plain.argmax(1)) > 0.85


def test_codes_that_plain_avx2_cannot_multiply_are_left_to_the_interpreter(razored: Path) -> None:
    graph = read_graph(razored)
    change = {"basis": 16, "width": 8, "twos_complement": 1}
    nodes = tuple(
        replace(n, attributes={**n.attributes, **change}) if n.op_type == "SdrQuantize" else n for n in graph.nodes
    )
    with pytest.raises(Unplannable, match="twos-complement activations of 8 bits"):
        plan_decoder(replace(graph, nodes=nodes), 32)


def test_a_razored_cache_takes_a_quarter(tmp_path: Path) -> None:
    """Heads of 32: codes of 4 bits and a flag of 4 for 16 of them are 4.25 bits, float16 takes 16."""
    folder = _folder(DEMO, tmp_path, razor={"kv": 4, "compensate": False})
    plain = tmp_path / "plain"
    model, _ = open_model(folder)
    checkpoint = QuantizedCheckpoint(tmp_path / "quantized")
    checkpoint.manifest["integers"]["cache"] = None
    plain.mkdir()
    write_model_folder(checkpoint, plain)
    half, _ = open_model(plain)
    assert isinstance(model, Engine) and isinstance(half, Engine)
    assert model.cache_bytes_per_token / half.cache_bytes_per_token == 4.25 / 16


@pytest.mark.parametrize(
    "settings",
    [
        {"razor": {"activation_bits": 16}},
        {"rotation": "activations", "razor": {"activation_unit": "token", "kv": 8, "kv_unit": "head"}},
        {"bits": 8, "razor": {"activation_bits": 8, "razor_group": 32, "refit": True}},
        {"method": "athena", "bits": 3, "razor": {"activation_bits": 8}},
    ],
    ids=["A16", "rotated", "W8A8", "athena"],
)
def test_variants_agree_with_onnxruntime(settings: dict, tmp_path: Path) -> None:
    folder = _folder(DEMO, tmp_path, **settings)
    ids = np.random.default_rng(2).integers(3, 500, 24)
    session = Session(folder)
    ours = session.forward(session.new_state(), ids)
    onnx_session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, 24), np.int64), "position_ids": np.arange(24)[None]}
    for info in onnx_session.get_inputs():
        if info.name.startswith("past"):
            dtype = np.uint8 if "uint8" in info.type else np.float32
            feeds[info.name] = np.zeros((1, info.shape[1], 0, info.shape[3]), dtype)
    theirs = onnx_session.run(["logits"], feeds)[0][0]
    # Whole integers of 8 bits or more: a code that falls to the other side of a border moves a logit by 1e-2 at most.
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) > 0.9


def test_losses_never_rise_and_dead_weights_survive() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((12, 40))
    w[3], w[:, 5] = 0, 0
    x = rng.standard_normal((100, 40)) @ rng.standard_normal((40, 40))
    x[:, 7] = 0
    settings = QuantizeSettings(method="qrazor", bits=4, razor=RazorSettings(activation_bits=4, refit=True))
    result = qrazor.quantize(w, x.T @ x, settings)
    losses = result.losses
    assert losses["refitted"] <= losses["compensated"] + 1e-6 and losses["compensated"] < losses["razored"]
    assert not result.dequantized()[3].any() and np.isfinite(result.dequantized()).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(2, 7), st.integers(1, 40), st.integers(2, 60), st.integers(0, 1000))
def test_razored_codebook_entries_are_short_codes(bits: int, width: int, rows: int, columns: int, seed: int) -> None:
    """Every entry is a code times one power of two of its codebook; the loss is below that of razoring alone."""
    w, h = problem(seed, rows, columns)
    chosen = QuantizeSettings(bits=bits, passes=2, scale_bits=16)
    result = athena.quantize(w, h, replace(chosen, razor=RazorSettings(razor_codebook=width)))
    for codebook in result["codebook"].reshape(-1, 1 << bits).astype(np.int64):
        dropped = max(int(np.abs(codebook).max()).bit_length() + 1 - width, 0)
        assert not (codebook % (1 << dropped)).any()
        assert np.abs(codebook >> dropped).max() <= (1 << (width - 1)) - 1
    plain = athena.quantize(w, h, chosen)
    book, scale = plain["codebook"].astype(np.float64), plain["scale"].astype(np.float64)
    entries.razor_entries(book, scale, plain.layout.rows_per_codebook, SdrFormat(8, width, 1 << bits))
    parts = {**plain.parts, "codebook": book.astype(np.int8), "scale": scale.astype(np.float32)}
    razored = replace(plain, parts=parts).dequantized()
    h, _ = damped(h, chosen.damping)
    # float16 scales: 2**-11 of the weights, 2.4e-7 of their loss, where the comparison has float32 ones
    assert result.losses["razored_entries"] <= layer_loss(w - razored, h) / layer_loss(w, h) * (1 + 1e-3) + 2e-6


@pytest.mark.parametrize("columns", [1, 6, 64, 172, 768])
def test_the_rotation_is_its_own_inverse(columns: int) -> None:
    size = rotation_size(columns)
    matrix = hadamard(size).astype(np.float64)
    assert columns % size == 0
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"razor": {"activation_bits": 0}}, "--activation-bits"),
        ({"group_size": 16}, "--razor-group"),
        ({"bits": None, "budget": 3.5}, "takes --bits, no --budget"),
        ({"method": "athena", "bits": 3, "rotation": "activations"}, "--rotation activations"),
        ({"razor": {"kv": 3}}, "--kv"),
        ({"tune_steps": 5}, "--tune-steps"),
        ({"razor": {"activation_unit": "row"}}, "--activation-unit"),
        ({"razor": {"razor_codebook": 4}}, "--razor-codebook is for --method athena"),
        (
            {"method": "athena", "tune_steps": 5, "razor": {"razor_codebook": 4}},
            "does not go with tuning",
        ),
        ({"method": "athena", "razor": {"razor_codebook": 9}}, "--razor-codebook"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _folder(DEMO, tmp_path, **settings)
