"""`sparsify` on the bundled model: onnxruntime, the interpreter and the engine, one text and several, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.operators.sparse_attention import SPARSE_ATTENTION, SparseLayout
from export.contract.pages import PAGE, Pages
from export.lowering.folder import Lowering, write_lowered_folder
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.runtime_py.engine.test_range import huge
from tests.runtime_py.tiny import write_tiny
from toolchain.cli import app
from toolchain.report.attention_picture import attention_picture
from toolchain.report.model_report import read_report
from toolchain.sparsify.folder import write_sparse_folder
from toolchain.sparsify.maps import page_maps


def sparse(source: Path, place: Path, pages: int, **more: object) -> Path:
    folder = place / f"sparse-{pages}"
    folder.mkdir(parents=True)
    write_sparse_folder(source, folder, Pages(pages), **more)
    return folder


@pytest.fixture(scope="module")
def folder(demo_folder, tmp_path_factory) -> Path:
    return sparse(demo_folder, tmp_path_factory.mktemp("sparse"), 6)  # 96 keys


def athena(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 1000, count)


def test_onnxruntime_and_the_interpreter_agree(folder):
    """A prompt of 150 tokens, then 30 one by one over onnxruntime's own cache."""
    ids = tokens(180)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    past = {
        i.name: np.zeros([1, i.shape[1], 0, i.shape[3]], np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_")
    }
    own = Session(folder)
    state = own.new_state()
    for start, stop in [(0, 150), *((n, n + 1) for n in range(150, 180))]:
        feeds = {
            "input_ids": ids[None, start:stop], "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None], **past,
        }  # fmt: skip
        feeds = {i.name: feeds[i.name] for i in session.get_inputs()}
        found = dict(zip(names, session.run(None, feeds)))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        np.testing.assert_allclose(own.forward(state, ids[start:stop]), found["logits"][0], atol=2e-3)


def test_the_engine_plans_it(folder):
    model, notes = open_model(folder)
    assert isinstance(model, Engine), notes
    assert sum(node.op_type == SPARSE_ATTENTION for node in read_graph(folder).nodes) == 4
    reference = Session(folder)
    ids = tokens(200)
    found, wanted = model.forward(model.new_state(), ids), reference.forward(reference.new_state(), ids)
    # int8 activations against float32: where two pages are nearly as good, they may choose differently
    assert np.mean(np.abs(found - wanted)) < 0.1 and np.mean(found.argmax(1) == wanted.argmax(1)) > 0.9


def test_texts_shorter_than_the_pages_are_to_the_bit_as_before(demo_folder, folder):
    dense, own = (Engine(read_graph(place)) for place in (demo_folder, folder))
    states = dense.new_state(), own.new_state()
    for piece in (tokens(60), tokens(1, 1), tokens(35, 2)):  # 96 in all
        wanted, found = (model.forward(state, piece) for model, state in zip((dense, own), states))
        np.testing.assert_array_equal(found, wanted)
    assert (dense.forward(states[0], [7]) != own.forward(states[1], [7])).any()  # the 97th reads 6 of 7 pages


def test_many_pages_are_all_pages(demo_folder, tmp_path):
    """More pages than there are, in the sparse kernel's own way: a call that reaches beyond them, token by token."""
    own = Engine(read_graph(sparse(demo_folder, tmp_path, 13)))  # 208 keys
    dense = Engine(read_graph(demo_folder))
    ids = tokens(240)
    found, wanted = (model.forward(model.new_state(), ids)[:208] for model in (own, dense))
    np.testing.assert_array_equal(found, wanted)


def test_several_texts_get_what_each_gets_alone(folder):
    engine = Engine(read_graph(folder))
    lengths = (300, 40, 95, 96, 120, 700)
    together, alone = ([engine.new_state() for _ in lengths] for _ in range(2))
    for states in (together, alone):
        for number, (state, length) in enumerate(zip(states, lengths)):
            engine.forward(state, tokens(length, number), last_only=True)
    assert engine._program.takes_apart
    for step in range(20):
        ids = tokens(len(lengths), 100 + step).tolist()
        rows = engine.step(together, ids)
        for row, state, token in zip(rows, alone, ids):
            np.testing.assert_array_equal(row, engine.forward(state, [token], last_only=True)[0])


def test_guessed_tokens_can_be_taken_back(folder):
    engine = Engine(read_graph(folder))
    ids, guess = tokens(330), tokens(40, 5)
    plain, guessed = engine.new_state(), engine.new_state()
    for state in (plain, guessed):
        engine.forward(state, ids[:300], last_only=True)
    engine.forward(guessed, guess, last_only=True)  # over two pages' ends
    assert engine.rewind(guessed, 300) == 300
    for token in ids[300:]:
        np.testing.assert_array_equal(engine.forward(plain, [token]), engine.forward(guessed, [token]))


def test_numbers_beyond_float16(tmp_path):
    """A cache of float32: bounds are as wide as the keys that they are of."""
    source = write_tiny(tmp_path / "source", huge(18, 0), max_position_embeddings=512)
    model = Engine(read_graph(sparse(source, tmp_path, 5)))
    reference = Session(tmp_path / "sparse-5")
    ids = np.random.default_rng(0).integers(3, 90, 150)
    state = model.new_state()
    found, wanted = model.forward(state, ids), reference.forward(reference.new_state(), ids)
    assert state.items[0][0] == 4 and np.isfinite(found).all()
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.8


def test_layers_that_stay_dense(demo_folder, tmp_path):
    place = sparse(demo_folder, tmp_path, 6, dense=(0, 2))
    kinds = [n.op_type for n in read_graph(place).nodes if n.op_type in ("Attention", SPARSE_ATTENTION)]
    assert kinds == ["Attention", SPARSE_ATTENTION] * 2
    assert isinstance(open_model(place)[0], Engine)


def test_the_command(demo_folder, tmp_path):
    text = tmp_path / "text"
    text.write_text("The cat sat on the mat and looked at the moon. " * 60)
    arguments = ["--keys", "64", "--text", str(text), "--window", "128", "--json"]
    done = athena("sparsify", str(demo_folder), "-o", str(tmp_path / "out"), *arguments)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["keys"] == 64 and told["layers"] == 4 and 0 <= told["quality"]["kl"] < 1
    report = read_report(tmp_path / "out")
    assert report["sparse"]["keys"] == 64 and report["sparse"]["maps"]["layers"] == [0, 1, 2, 3]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Sparse attention" in page and "reads at most 64 keys" in page and "layer 3: expected" in page
    ran = athena("run", str(tmp_path / "out"), "--prompt", "The cat", "--max-tokens", "100", "--temperature", "0")
    assert ran.exit_code == 0, ran.stderr


def test_maps_are_shares_of_pages():
    """By hand: of a query at the end of a cell, by the means of whole pages, and by all keys."""
    rng = np.random.default_rng(0)
    keys, query = rng.standard_normal((1, 128, 8)).astype(np.float32), rng.standard_normal((1, 2, 128, 8))
    layout = SparseLayout(2, 1, 8, 0.5, 0.0, 4, 1, 2)
    expected, given = page_maps(query.astype(np.float32), keys, layout)
    assert expected.shape == given.shape == (8, 8)
    for row, page in np.ndindex(8, 8):
        position = 16 * (row + 1) - 1  # its own page is not among those that are whole
        wanted = [0.0, 0.0]
        for head in range(2):
            q, means = 0.5 * query[0, head, position], keys[0].reshape(8, 16, 8).mean(1)[:row]
            for place, scores in enumerate((means @ q, keys[0, : position + 1] @ q)):
                shares = np.exp(scores) / np.exp(scores).sum()
                if page < row:
                    wanted[place] += (shares[page] if place == 0 else shares[16 * page : 16 * page + 16].sum()) / 2
        np.testing.assert_allclose([expected[row, page], given[row, page]], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--keys", "20"], "--keys"),
        (["--keys", "64", "--recent-keys", "64"], "is less than --first-keys 16 and --recent-keys 64"),
        (["--dense-layers", "4"], "the layers with attention are 0 to 3"),
        (["--dense-layers", "one"], "numbers of layers"),
        (["--dense-layers", "0,,1"], "numbers of layers"),
        (["--keys", "4096"], "leaves nothing out: the model has 512 positions"),
        (["--keys", "480", "--text", "T", "--window", "300"], "hold nothing behind"),
        (["--keys", "64", "--window", "128"], "--window and --limit go with --text"),
        (["--keys", "64", "--limit", "1"], "--window and --limit go with --text"),
        (["--keys", "64", "--text", "T", "--window", "100000"], "longer than the model's"),
    ],
)
def test_refusals(demo_folder, tmp_path, arguments, said):
    text = tmp_path / "text"
    text.write_text("word " * 3000)
    given = [str(text) if one == "T" else one for one in arguments]
    done = athena("sparsify", str(demo_folder), "-o", str(tmp_path / "out"), *given)
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "out").exists()


def test_what_is_sparse_or_lowered_is_not_made_sparse_again(demo_folder, folder, tmp_path):
    for name in ("again", "lowered", "after"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="sparse already"):
        write_sparse_folder(folder, tmp_path / "again", Pages(6))
    done = write_lowered_folder(folder, tmp_path / "lowered", Lowering("ort-cpu", ("matmul_nbits",)))
    assert done["check"]["difference"] is None or done["check"]["difference"] < 0.5
    with pytest.raises(InputError, match="was lowered"):
        write_sparse_folder(tmp_path / "lowered", tmp_path / "after", Pages(6))


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda node: node.input.append("attention_mask"), "inputs or outputs that have no counterpart"),
        (lambda node: node.output.append(f"{node.name}/scores"), "inputs or outputs that have no counterpart"),
        (lambda node: node.input.__setitem__(3, ""), "lacks a mask"),
    ],
)
def test_attention_that_it_cannot_stand_for_is_refused(demo_folder, tmp_path, edit, said):
    for name in ("crafted", "out"):
        (tmp_path / name).mkdir()
    for path in demo_folder.iterdir():
        (tmp_path / "crafted" / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / "crafted" / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            edit(node)
    onnx.save(model, tmp_path / "crafted" / "model.onnx")
    with pytest.raises(InputError, match=said):
        write_sparse_folder(tmp_path / "crafted", tmp_path / "out", Pages(6))


@pytest.mark.parametrize("positions", ["abc", [1], float("inf"), -5])
def test_a_config_without_a_length_is_one_line(demo_folder, tmp_path, positions):
    source = tmp_path / "source"
    source.mkdir()
    for path in demo_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    done = athena("sparsify", str(source), "-o", str(tmp_path / "out"), "--keys", "64")
    assert done.exit_code == 2 and "internal" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "maps",
    [
        {"layers": [0], "expected": [], "attention": []},
        {"layers": [0], "expected": [[[]]], "attention": [[[]]]},
        {"layers": [0], "expected": [[[1], [1, 2]]], "attention": [[[1]]]},
        {"layers": list(range(100)), "expected": [[[1]]] * 100, "attention": [[[1]]] * 100},
        {"layers": [0], "expected": [[[0.1] * 100] * 100], "attention": [[[1]]]},
    ],
)
def test_a_report_with_other_maps_is_refused(maps):
    with pytest.raises(ValueError, match="maps that are not squares"):
        attention_picture({"tokens": 100, **maps})


@pytest.mark.parametrize("pages, first, recent", [(2, 1, 2), (1 << 20, 1, 2), (6, -1, 2), (6, 1, 0)])
def test_a_graph_with_pages_that_do_not_fit_is_refused(folder, tmp_path, pages, first, recent):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == SPARSE_ATTENTION else ():
            attribute.i = {"pages": pages, "first": first, "recent": recent}.get(attribute.name, attribute.i)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="attributes of SparseAttention are wrong"):
        Engine(read_graph(tmp_path))
    assert PAGE == 16
