"""Trellis codes on random matrices: best paths, falling losses, a true record, better than scalars."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.artefacts.records import STANDARD, TensorRecord
from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from export.contract.formats.halves import split
from export.contract.formats.trellis import ANY, STANDARD_STATE_BITS, SUMS, UNIT, TrellisLayout, standard_levels
from tests.toolchain.quantize.test_quantize import problem, relative_loss
from toolchain.quantize import method
from toolchain.quantize.solvers.trellis import choose_layout
from toolchain.quantize.solvers.viterbi.column import trellis_kind
from toolchain.quantize.solvers.viterbi.paths import nearest
from toolchain.quantize.solvers.viterbi.solver import Problem, State, _fit_book
from toolchain.settings.quantize import QuantizeSettings
from toolchain.tune.trainable.trellis import TrainableTrellis

CHOICES = [(1, 3), (2, 4), (2, 8), (3, 8), (4, 6)]


@pytest.mark.parametrize("bits, state_bits", CHOICES)
def test_paths_are_the_best_of_all(bits, state_bits):
    """Against every sequence of codes there is."""
    rng = np.random.default_rng(state_bits)
    rows = 6 // bits + 1
    target, weight = rng.standard_normal((5, rows)).astype(np.float32), rng.random(rows).astype(np.float32) + 0.1
    levels, states = rng.standard_normal(1 << state_bits).astype(np.float32), np.empty((5, rows), np.int32)
    nearest(trellis_kind(bits, state_bits), target, weight, levels, states)
    for t, found in zip(target, states):
        cost = ((t - levels[found]) ** 2 * weight).sum()
        best = np.inf
        for code in itertools.product(range(1 << bits), repeat=rows):
            state, path = 0, []
            for c in code:
                state = (state << bits | c) % (1 << state_bits)
                path.append(state)
            best = min(best, ((t - levels[path]) ** 2 * weight).sum())
        assert cost == pytest.approx(best, rel=1e-5)  # float32 sums in another order


@settings(max_examples=25)
@given(
    st.sampled_from(CHOICES), st.integers(1, 40), st.integers(1, 70), st.sampled_from([0, 1, 7, 64]),
    st.sampled_from([0, 16]), st.integers(0, 1000),
)  # fmt: skip
def test_steps_never_raise_the_loss_and_the_record_is_true(choice, rows, columns, shared, scale, seed):
    w, h = problem(seed, rows, columns)
    bits, state_bits = choice
    options = QuantizeSettings(
        bits=bits, format="trellis", state_bits=state_bits, rows_per_codebook=shared, scale_bits=scale, passes=2
    )
    result = method("athena")(w, h, options)
    assert isinstance(result.layout, TrellisLayout)
    steps = result.losses
    assert steps["sweep"] <= steps["clustering"] and steps["refinement"] <= steps["sweep"]
    final = steps.get("coded_scales", steps.get("stored_scales"))
    # float32 dequantization: a relative error of 1e-6 of the weights, far below the loss itself
    assert relative_loss(result, w, h) == pytest.approx(final, rel=1e-3, abs=1e-9)
    tensors, record = result.stored("w")
    assert record.bytes == sum(array.nbytes for array in tensors.values())
    again = StoredMatrix.restored(record, lambda suffix: tensors.get("w" + suffix))
    np.testing.assert_array_equal(again.dequantized(), result.dequantized())


def loss_by_row(result: StoredMatrix, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    error = w.astype(np.float64) - result.dequantized()
    return np.einsum("nk,kl,nl->n", error, h, error)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scale_bits", [0, 16])
def test_rows_that_count_more_lose_less(bits, scale_bits):
    """A path serves all rows of a column; row by row there would be nothing to trade."""
    w, h = problem(bits, 96, 128)
    weights = np.exp(np.random.default_rng(1).normal(0, 1.5, len(w))).astype(np.float32)
    options = QuantizeSettings(bits=bits, format="trellis", state_bits=8, passes=2, scale_bits=scale_bits)
    plain, weighed = (method("athena")(w, h, options, row_weights=rows) for rows in (None, weights))
    before, after = (loss_by_row(result, w, h) for result in (plain, weighed))
    assert (weights * after).sum() < 0.85 * (weights * before).sum()
    counts = weights > np.quantile(weights, 0.8)
    assert after[counts].sum() < 0.7 * before[counts].sum()
    assert weighed.stored("w")[1].bytes == plain.stored("w")[1].bytes
    # what the record says is the loss so weighed
    total = (weights * np.einsum("nk,kl,nl->n", w.astype(np.float64), h, w)).sum()
    final = weighed.losses.get("coded_scales", weighed.losses.get("stored_scales"))
    assert (weights * after).sum() / total == pytest.approx(final, rel=0.1)  # h is damped there


def test_rows_that_count_alike_change_nothing():
    w, h = problem(3, 64, 128)
    options = QuantizeSettings(bits=3, format="trellis", passes=2)
    plain, weighed = (method("athena")(w, h, options, row_weights=rows) for rows in (None, np.ones(64, np.float32)))
    for name, part in plain.parts.items():
        np.testing.assert_array_equal(weighed[name], part)


def test_long_rows_are_solved_in_float32_as_well():
    w, h = problem(0, 64, 1030)
    short, long = w[:, :1000], w
    options = QuantizeSettings(bits=2, format="trellis", passes=1, scale_bits=16)
    parts = [(m, h[: m.shape[1], : m.shape[1]]) for m in (short, long)]
    losses = [relative_loss(method("athena")(m, own, options), m, own) for m, own in parts]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("bits, factor", [(2, 0.85), (3, 0.8), (4, 0.8)])
def test_a_trellis_beats_scalars_and_vectors_at_no_more_bits(bits, factor):
    w, h = problem(0, 256, 256)
    results = [method("athena")(w, h, QuantizeSettings(bits=bits, **o)) for o in (
        {"format": "trellis"}, {}, {"format": "vectors", "dimension": 8 // bits if bits < 4 else 2})]  # fmt: skip
    stored = [result.stored("w")[1].effective_bits for result in results]
    losses = [relative_loss(result, w, h) for result in results]
    assert stored[0] <= stored[1] + 0.01
    assert losses[0] < factor * losses[1] and losses[0] < losses[2]


@pytest.mark.parametrize(
    "shape, bits, expected",
    [((256, 256), 3, (8, 256, False)), ((768, 256), 2, (8, 512, False)), ((128, 256), 2, (8, 128, True)),
     ((172, 64), 2, (8, 172, True)), ((2048, 2048), 4, (8, 128, False)), ((768, 256), 5, None)],
)  # fmt: skip
def test_automatic_layout(shape, bits, expected):
    """State bits, rows a codebook, whether the levels are the standard ones."""
    found = choose_layout(*shape, QuantizeSettings(bits=bits, format="trellis"))
    assert (found and (found[0].state_bits, found[0].rows_per_codebook, found[1])) == expected
    if bits <= 4:
        own, standard = choose_layout(*shape, QuantizeSettings(bits=bits, format="trellis", state_bits=bits + 2))
        assert own.state_bits == bits + 2 and not standard


def test_records_with_standard_levels_are_trellises():
    w, h = problem(0, 60, 64)
    record = method("athena")(w, h, QuantizeSettings(bits=3)).stored("w")[1].to_json()
    record["parts"]["codebook"]["how"] = "standard"
    with pytest.raises(ValueError, match="codebook has no standard codebook"):
        TensorRecord.from_json(record)


def test_small_matrices_may_stay_scalar():
    large, small = (256, 128), (256, 127)
    settings_ = QuantizeSettings(bits=3, format="mixed")
    assert choose_layout(*large, settings_) is not None and choose_layout(*small, settings_) is None
    with pytest.raises(
        InputError, match="codebook, trellis, vectors, razored, mxfp4, groups, nested, sparse_codes, mixed"
    ):
        QuantizeSettings(format="some")


@pytest.mark.parametrize("rows", [60, 1200])  # which take the standard levels, and levels of their own
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_may_be_sums(rows, bits):
    w, h = problem(0, rows, 64)
    free, sums = (
        method("athena")(w, h, QuantizeSettings(bits=bits, format="trellis", levels=levels, passes=2))
        for levels in ("any", "sums")
    )
    assert bool(sums.standard) == (rows == 60) and split(sums["codebook"], bits) is not None
    assert split(free["codebook"], bits) is None
    assert relative_loss(sums, w, h) < 1.15 * relative_loss(free, w, h)
    again = StoredMatrix.restored(*_kept(sums))
    np.testing.assert_array_equal(again.dequantized(), sums.dequantized())


def _kept(stored):
    tensors, record = stored.stored("w")
    record = TensorRecord.from_json(json.loads(json.dumps(record.to_json())))
    return record, lambda suffix: tensors.get("w" + suffix)


@pytest.mark.parametrize("options", [{"format": "codebook"}, {"format": "trellis", "state_bits": 6}])
def test_sums_are_for_trellises_of_eight_state_bits(options):
    with pytest.raises(InputError, match="--levels sums is for --format trellis and mixed with 8 state bits"):
        QuantizeSettings(bits=3, levels="sums", **options)


def test_standard_levels_are_stored_once_for_the_model():
    w, h = problem(0, 60, 64)
    result = method("athena")(w, h, QuantizeSettings(bits=3, format="trellis"))
    tensors, record = result.stored("w")
    assert record.parts["codebook"].how == STANDARD and "w.codebook" not in tensors
    assert record.bytes == sum(array.nbytes for array in tensors.values())
    again = StoredMatrix.restored(record, lambda suffix: tensors.get("w" + suffix))
    np.testing.assert_array_equal(again.dequantized(), result.dequantized())
    scalar = method("athena")(w, h, QuantizeSettings(bits=3))
    assert record.effective_bits < scalar.stored("w")[1].effective_bits
    assert relative_loss(result, w, h) < 0.8 * relative_loss(scalar, w, h)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("edition", [ANY, SUMS])
def test_standard_levels_fit_the_normal_distribution(bits, edition):
    rng = np.random.default_rng(100 + bits)
    sample, states = rng.standard_normal((200, 256)).astype(np.float32), np.empty((200, 256), np.int32)
    levels = standard_levels(bits, edition) / np.float32(UNIT)
    nearest(trellis_kind(bits, STANDARD_STATE_BITS[bits]), sample, np.ones(256, np.float32), levels, states)
    one_level_a_code = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]  # Lloyd-Max, Max 1960
    assert np.mean((sample - levels[states]) ** 2) < {1: 0.82}.get(bits, 0.72) * one_level_a_code


def test_codebooks_are_the_least_squares_solution():
    """Against the dense normal equations of all entries."""
    rng = np.random.default_rng(0)
    w, h = problem(0, 6, 12)
    state = State(rng.integers(0, 5, (12, 6)).astype(np.int32), rng.standard_normal(5).astype(np.float32),
                  rng.random(6) + 0.5)  # fmt: skip
    images = np.stack([State(state.states, e.astype(np.float32), state.scale).weights().T.ravel() for e in np.eye(5)])
    metric = np.kron(np.eye(6), h)
    best = np.linalg.lstsq(images @ metric @ images.T, images @ metric @ w.ravel(), rcond=None)[0]
    loss = w.ravel() - images.T @ best
    part = Problem(np.ascontiguousarray(w.T), h, 2, 3)
    _fit_book(part, state, part.h @ (part.w - state.weights()))
    assert part.loss(state) == pytest.approx(loss @ metric @ loss, rel=1e-4)  # steps are float32


@settings(max_examples=15)
@given(st.sampled_from(CHOICES), st.integers(1, 30), st.integers(2, 50), st.sampled_from([0, 16]), st.integers(0, 1000))
def test_trained_weights_are_stored_exactly(choice, rows, columns, scale_bits, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * 0.1
    x = rng.standard_normal((100, columns))
    options = QuantizeSettings(
        bits=choice[0], format="trellis", state_bits=choice[1], scale_bits=scale_bits, passes=1, rows_per_codebook=16
    )
    stored = method("athena")(w, x.T @ x, options)
    layer = TrainableTrellis(nn.Linear(columns, rows), stored)
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


@pytest.mark.parametrize(
    "settings_, message",
    [
        ({"format": "trellis", "method": "gptq"}, "--format trellis is for --method athena; gptq has codebook"),
        ({"format": "trellis", "dimension": 2}, "--dimension is for --format vectors and mixed"),
        ({"format": "trellis", "rank": 4}, "--rank does not go with"),
        ({"format": "trellis", "state_bits": 3}, "--state-bits must be 4 to 12"),
        ({"format": "trellis", "state_bits": 6, "bits": None, "budget": 2.5}, "--state-bits takes --bits"),
        ({"format": "trellis", "group_size": 64}, "--group-size does not go with"),
    ],
)
def test_impossible_settings_are_refused(settings_, message):
    with pytest.raises(InputError, match=message):
        QuantizeSettings(**{"bits": 3, **settings_})
