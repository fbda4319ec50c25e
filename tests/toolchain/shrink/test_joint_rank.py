"""Joint ranks: numpy's SVD beside it, ranks within the budget, and the folder through exporter and engine."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.contract.errors import InputError
from runtime_py.load import open_model as open_folder
from tests.conftest import _checkpoint, _package
from tests.toolchain.shrink.test_command import QUICK, shrink, shrunk
from toolchain.calibrate.own_text import whole_model
from toolchain.shrink.methods.joint_rank import Pair, balanced, break_even, chosen_ranks, decomposed, factors
from toolchain.source.heads import open_model


def test_the_dossiers_numbers():
    rows, columns = 2 * 11008, 4096
    assert int(0.8 * break_even(rows, columns)) == 2762
    assert 2763 * (rows + columns) > 0.8 * rows * columns >= 2762 * (rows + columns)


@given(st.integers(0, 99), st.integers(2, 9), st.integers(2, 6))
def test_the_shared_factor_is_that_of_the_svd(seed, rows, columns):
    m = np.random.default_rng(seed).standard_normal((rows, columns))
    vectors, energy = decomposed(m)
    u, s, vt = np.linalg.svd(m)
    squares = np.zeros(columns)
    squares[: len(s)] = s**2
    assert np.allclose(energy, squares, atol=1e-9 * squares[0])
    for rank in range(1, min(rows, columns) + 1):
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        error = ((m - best) ** 2).sum()
        ours = m @ vectors[:, :rank] @ vectors[:, :rank].T
        assert ((m - ours) ** 2).sum() == pytest.approx(error, abs=1e-8)


@given(st.integers(0, 99), st.integers(2, 9), st.integers(2, 6))
def test_with_a_text_outputs_are_what_is_approximated(seed, rows, columns):
    """The error of the outputs is what the best approximation of M X leaves, X being the inputs."""
    rng = np.random.default_rng(seed)
    m = rng.standard_normal((rows, columns))
    x = rng.standard_normal((columns, 40)) * np.exp(rng.standard_normal((columns, 1)))
    into, shared, energy = factors(m, 2 * x @ x.T, 1e-12)
    s = np.linalg.svd(m @ x, compute_uv=False)
    for rank in range(1, min(rows, columns) + 1):
        ours = m @ into[:, :rank] @ shared[:rank]
        assert (((m - ours) @ x) ** 2).sum() == pytest.approx((s[rank:] ** 2).sum(), abs=1e-6 * (s**2).sum())
    count = min(rows, columns)
    assert np.allclose(energy[:count], 2 * s[:count] ** 2, atol=1e-6 * energy[0])


@pytest.mark.parametrize("with_text", [False, True])
def test_columns_of_what_each_matrix_stores_are_of_one_size(with_text):
    rng = np.random.default_rng(0)
    m = rng.standard_normal((24, 16)) * np.exp(rng.standard_normal(16))
    x = rng.standard_normal((16, 60)) * np.exp(rng.standard_normal((16, 1)))
    into, shared, energy = factors(m, x @ x.T if with_text else None, 1e-12)
    into, shared = balanced(m, into, shared)
    sizes = np.linalg.norm(m @ into, axis=0)
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-4)
    assert energy[0] > 100 * energy[-1]  # which falls
    np.testing.assert_allclose(m @ into @ shared, m, atol=1e-8)


@given(st.integers(0, 99), st.floats(0.3, 1.2))
def test_ranks_stay_within_the_weights_and_no_step_is_left_that_fits(seed, share):
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(4):
        n, rows = 16, int(rng.integers(8, 40))
        pairs.append(Pair("gate_up", i, ("", ""), rows, np.eye(n), np.eye(n), np.sort(rng.random(n))[::-1]))
    most = int(share * sum(pair.weights(0) for pair in pairs))
    try:
        ranks = chosen_ranks(pairs, most, 2)
    except InputError:
        assert sum(pair.weights(2) for pair in pairs) > most
        return
    used = sum(pair.weights(rank) for pair, rank in zip(pairs, ranks))
    assert used <= most
    for pair, rank in zip(pairs, ranks):
        assert not rank or pair.weights(rank) < pair.weights(0)
        if rank:
            more = pair.weights(rank + 2) if pair.weights(rank + 2) < pair.weights(0) else pair.weights(0)
            assert used - pair.weights(rank) + more > most


def test_weights_go_where_energy_costs_the_loss_most():
    """Energies of a text are comparable: a pair whose outputs matter little gets the least rank."""
    energy = np.linspace(2, 1, 16)
    pairs = [
        Pair("gate_up", i, ("", ""), 30, np.eye(16), np.eye(16), energy * factor) for i, factor in enumerate([100, 1])
    ]
    most = pairs[0].weights(0) + pairs[1].weights(2)
    assert chosen_ranks(pairs, most, 2, comparable=True) == [0, 2]
    assert min(chosen_ranks(pairs, most, 2)) > 2


@pytest.mark.parametrize("model", ["tiny", "tiny_qwen"])
def test_factors_and_their_products_are_one_model(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    asked = [folder, "--by", "joint-rank", "--keep", 0.7, "--multiple", 8, *QUICK]
    report = shrunk(*asked, "-o", tmp_path / "low")
    assert 0.6 < report["linear_weights"]["after"] / report["linear_weights"]["before"] <= 0.7
    assert report["cost"]["after"]["latency_s"] < report["cost"]["before"]["latency_s"]
    shrink(*asked, "-o", tmp_path / "dense", "--dense")
    with pytest.raises(ValueError, match="athena_low_rank"):  # transformers does not take it for what it is not
        AutoModelForCausalLM.from_pretrained(tmp_path / "low")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()(tokens, use_cache=False).logits
        ours = whole_model(open_model(tmp_path / "low")[0])(input_ids=tokens, use_cache=False).logits
    assert torch.allclose(ours, dense, atol=2e-4)


def test_a_text_makes_the_outputs_better(tiny, tmp_path):
    asked = [tiny, "--by", "joint-rank", "--keep", 0.7, "--multiple", 8, *QUICK]
    without, fitted = (
        shrunk(*asked, "-o", tmp_path / name, *options)
        for name, options in (("weights", ["--no-reconstruct"]), ("outputs", []))
    )
    assert fitted["quality"]["kl"] < 0.9 * without["quality"]["kl"]
    assert fitted["calibration"] != without["calibration"]  # the one says that it read none


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A model of low rank, its quantized checkpoint and its model folder."""
    place = tmp_path_factory.mktemp("low")
    shrink(tiny, "-o", place / "low", "--by", "joint-rank", "--keep", 0.7, "--multiple", 8, *QUICK)
    settings = {"bits": 8, "method": "rtn", "sequences": 2, "sequence_length": 16, "embedding_bits": 16}
    _package(_checkpoint(place / "low", "built-in", None, place / "q", **settings), place / "OUT")
    return place


def _compare(place, activations, tolerance):
    session, why = open_folder(place / "OUT", activations)
    tokens = np.arange(3, 40)
    found = session.forward(session.new_state(), tokens)
    with torch.no_grad():
        model = whole_model(open_model(place / "low")[0])
        wanted = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    return why


def test_export_keeps_two_products(exported):
    _compare(exported, "float32", 0.04)  # 8-bit codes of a model that is all noise
    records = {t["name"]: t["shape"] for t in json.loads((exported / "q" / "athena.json").read_text())["tensors"]}
    ranks = json.loads((exported / "low" / "config.json").read_text())["athena_low_rank"]
    layer = next(n for n, rank in enumerate(ranks["gate_up"]) if rank)
    assert records[f"model.layers.{layer}.mlp.gate_proj.a"] == [ranks["gate_up"][layer], 64]
    assert records[f"model.layers.{layer}.mlp.up_proj.b"] == [96, ranks["gate_up"][layer]]


@pytest.mark.long
def test_the_engine_runs_two_products(exported):
    assert _compare(exported, "int8", 0.06) == ""


@pytest.mark.parametrize(
    "record",
    [3, [], {}, {"model_type": "llama"}, {"model_type": "athena_low_rank", "query_key": [8] * 3, "gate_up": [8] * 3},
     {"model_type": "llama", "query_key": [8] * 3, "gate_up": [8, 8]},
     {"model_type": "llama", "query_key": [8] * 3, "gate_up": [8, 8, 10**9]},
     {"model_type": "llama", "query_key": [8] * 3, "gate_up": [8, 8, True]},
     {"model_type": "gpt2", "query_key": [8] * 3, "gate_up": [8, 8, 8]},
     {"model_type": "llama", "query_key": [8] * 3, "gate_up": [16, 16, 16]}],
)  # fmt: skip
def test_hostile_records_are_refused(tiny, tmp_path, record):
    shrink(tiny, "-o", tmp_path / "low", "--by", "joint-rank", "--keep", 0.7, "--multiple", 8, *QUICK)
    config = json.loads((tmp_path / "low" / "config.json").read_text())
    (tmp_path / "low" / "config.json").write_text(json.dumps({**config, "athena_low_rank": record}))
    with pytest.raises(InputError):
        whole_model(open_model(tmp_path / "low")[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.0.mlp.gate_proj.a.weight", lambda t: t[:-1]),
        ("model.layers.0.mlp.gate_proj.a.weight", lambda t: t.T),
        ("model.layers.0.mlp.up_proj.b.weight", lambda t: t[:, :-1]),
        ("model.layers.0.mlp.up_proj.b.weight", lambda t: t[:-1]),
        ("model.layers.0.mlp.up_proj.b.weight", lambda t: t.flatten()),
    ],
)
def test_factors_that_do_not_fit_are_refused(low, tmp_path, name, change):
    shutil.copytree(low, tmp_path / "low")
    tensors = load_file(low / "model.safetensors")
    save_file(tensors | {name: change(tensors[name]).contiguous()}, tmp_path / "low" / "model.safetensors")
    with pytest.raises(InputError, match="have shapes|has shape"):
        whole_model(open_model(tmp_path / "low")[0])


@pytest.fixture(scope="module")
def low(tiny, tmp_path_factory):
    """Gate and up of the first layer share a factor."""
    folder = tmp_path_factory.mktemp("low") / "OUT"
    shrink(tiny, "-o", folder, "--by", "joint-rank", "--keep", 0.7, "--multiple", 8, *QUICK)
    return folder
