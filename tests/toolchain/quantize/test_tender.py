"""The tender method end to end: quantize, export, run; the same integers in onnxruntime; what targets make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.operators.integers import SDR_MATMUL
from export.contract.operators.tender import TENDER_QUANTIZE
from export.model_folder import write_model_folder
from runtime_py.engine.engine import Engine
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.conftest import DEMO
from tests.toolchain.quantize.test_qrazor import _folder
from toolchain.calibrate import text as calibration
from toolchain.calibrate.corpus import standard_library_text
from toolchain.quantize.methods import tender
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

GROUPS = {"activation_bits": 4, "activation_groups": 14}


def made(out: Path, model: Path = DEMO, **settings) -> Path:
    razor = {**GROUPS, **settings.pop("razor", {})}
    chosen = {"method": "tender", "bits": 4, "sequences": 16, "sequence_length": 128, **settings}
    return _folder(model, out, razor=razor, **chosen)


def text_ids(count: int) -> np.ndarray:
    """Tokens of the language that the bundled model knows and is calibrated on: groups are made for such."""
    text = standard_library_text("held-out", 20_000)[5000:8000]
    return np.asarray(calibration.load_tokenizer(DEMO).encode(text).ids[:count])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in INT4, 14 groups."""
    return made(tmp_path_factory.mktemp("tender"))


def onnxruntimes(path: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, ids.size), np.int64),
             "position_ids": np.arange(ids.size)[None]}  # fmt: skip
    for info in session.get_inputs():
        if info.name.startswith("past"):
            feeds[info.name] = np.zeros((1, info.shape[1], 0, info.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0][0]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in INT8, 8 groups."""
    razor = {"activation_bits": 8, "activation_groups": 8}
    return made(tmp_path_factory.mktemp("tender8"), bits=8, razor=razor)


def test_three_runtimes_agree(folder, wide):
    """Floats between the operators differ in their last bits (and the engine's cache is float16): then a code may flip,
    which is a small step with 8 bits, a large one with 4, and moves what follows."""
    ids = text_ids(40)
    for path, far in ((wide, 1e-3), (folder, 0.1)):
        model, why = open_model(path)
        assert isinstance(model, Engine), why
        session = Session(path)
        plain, engine = session.forward(session.new_state(), ids), model.forward(model.new_state(), ids)
        theirs = onnxruntimes(path, ids)
        assert ((plain - theirs) ** 2).mean() < far * plain.var()
        assert ((plain - engine) ** 2).mean() < far * plain.var()
        assert ((plain[0] - engine[0]) ** 2).mean() < 1e-3 * plain.var()
        state = model.new_state()
        model.forward(state, ids[:30])
        step = np.concatenate([model.forward(state, [t]) for t in ids[30:]])
        assert ((step - engine[30:]) ** 2).mean() < 1e-6 * plain.var()  # one token and several: the same integers


def test_channels_are_sorted_where_rows_feed_them_and_gathered_elsewhere(folder):
    graph = read_graph(folder)
    nodes = [node for node in graph.nodes if node.op_type == TENDER_QUANTIZE]
    assert len(nodes) == 4 * 4  # query, key and value read one value, gate and up another
    for node in nodes:
        order, shifts = graph.weights[node.inputs[1]], graph.weights[node.inputs[3]]
        assert sorted(order[order >= 0]) == list(range(order.max() + 1)) and order.size % 16 == 0
        assert (np.diff(shifts.astype(int)) <= 0).all() and shifts[-1] == 0
        if "down_proj" in node.name:
            assert (np.diff(order[order >= 0]) == 1).all() and len(set(shifts.tolist())) > 2


def test_order_and_groups_change_nothing_but_rounding(wide, tmp_path):
    """W8A8 in groups, permuted, is near 8-bit weights and float activations; 4-bit codes are nearer the more groups."""
    ids = text_ids(60)
    source = tmp_path / "plain"
    source.mkdir()
    plain = Session(_folder(DEMO, source, method="rtn", bits=8, sequences=4, razor={"activation_bits": 0}))
    want = plain.forward(plain.new_state(), ids)
    session = Session(wide)
    assert ((session.forward(session.new_state(), ids) - want) ** 2).mean() < 0.02 * want.var()
    far = []
    for number, groups in enumerate((1, 14)):
        (out := tmp_path / str(number)).mkdir()
        session = Session(made(out, bits=8, razor={"activation_groups": groups}))
        far.append(float(((session.forward(session.new_state(), ids) - want) ** 2).mean()))
    assert far[1] < 0.7 * far[0]
    (out := tmp_path / "athena").mkdir()
    path = made(out, method="athena", bits=3, passes=1)
    assert isinstance(open_model(path)[0], Engine)
    assert any(node.op_type == TENDER_QUANTIZE for node in read_graph(path).nodes)


def test_what_32_bits_cannot_sum_goes_to_the_interpreter(folder):
    graph = read_graph(folder)
    name = next(node for node in graph.nodes if node.op_type == TENDER_QUANTIZE).inputs[3]
    weights = {**graph.weights, name: np.full_like(graph.weights[name], 15)}
    nodes = tuple(
        replace(n, attributes={**n.attributes, "width": 8}) if n.op_type == TENDER_QUANTIZE else n for n in graph.nodes
    )
    plan_decoder(replace(graph, nodes=nodes), 32)
    with pytest.raises(Unplannable, match="leave 32 bits"):
        plan_decoder(replace(graph, nodes=nodes, weights={**weights, **_full_books(graph)}), 32)


def _full_books(graph) -> dict[str, np.ndarray]:
    books = {node.inputs[4] for node in graph.nodes if node.op_type == SDR_MATMUL}
    return {name: np.full_like(graph.weights[name], 127) for name in books}


@pytest.mark.parametrize("which, value, message", [(1, 10**6, "beyond"), (3, 99, "below 16"), (4, 0, "its unit")])
def test_a_hostile_graph_is_refused(folder, which, value, message):
    graph = read_graph(folder)
    name = next(node for node in graph.nodes if node.op_type == TENDER_QUANTIZE).inputs[which]
    weights = {**graph.weights, name: np.full_like(graph.weights[name], value)}
    with pytest.raises(InputError, match=message):
        plan_decoder(replace(graph, weights=weights), 32)


def test_a_checkpoint_that_does_not_fit_is_refused(folder, tmp_path):
    checkpoint = QuantizedCheckpoint(folder.parent / "quantized")
    original = checkpoint.tensor
    checkpoint.tensor = lambda name, suffix: (  # type: ignore[method-assign]
        original(name, suffix) + (99 if name.endswith("input_shifts") else 0)
    )
    with pytest.raises(InputError, match="its shifts are no group numbers"):
        write_model_folder(checkpoint, tmp_path / "wrong")
    checkpoint = QuantizedCheckpoint(folder.parent / "quantized")
    checkpoint.manifest["integers"]["channel_groups"] = 99
    with pytest.raises(InputError, match="groups of channels"):
        write_model_folder(checkpoint, tmp_path / "more")


def test_weights_are_symmetric_integers():
    w = np.random.default_rng(0).standard_normal((5, 30))
    w[2] = 0
    result = tender.quantize(w, None, QuantizeSettings(method="tender", bits=4, razor=RazorSettings(**GROUPS)))
    found, unit = result.dequantized(), result["scale"].astype(np.float64)
    assert not found[2].any()
    levels = found[[0, 1, 3, 4]] / unit[[0, 1, 3, 4]]
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(np.rint(levels)).max() == 7 and np.abs(found - w).max() <= 0.51 * unit.max()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"razor": {"activation_groups": 0}}, "--activation-groups must be 1 to 16"),
        ({"razor": {"activation_bits": 0}}, "--activation-bits 2 to 8"),
        ({"razor": {"activation_bits": 16}}, "--activation-bits 2 to 8"),
        ({"razor": {"activation_groups": 17}}, "--activation-groups"),
        ({"razor": {"activation_unit": "token"}}, "--activation-unit"),
        ({"bits": 1}, "--bits 2 to 8"),
        ({"bits": None, "budget": 3.5}, "takes --bits, no --budget"),
        ({"rank": 4}, "--rank"),
        ({"method": "athena", "bits": 3, "tune_steps": 5}, "--tune-steps"),
        ({"method": "athena", "bits": 3, "rank": 5}, "--rank"),
        ({"method": "qrazor"}, "no --activation-groups"),
    ],
)
def test_impossible_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        made(tmp_path, **settings)
