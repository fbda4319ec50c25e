"""Vector codes on random matrices: losses that only fall, a true record, better than scalars, trainable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from tests.toolchain.quantize.test_quantize import problem, relative_loss
from toolchain.quantize import method
from toolchain.quantize.solvers.vector_solver import State, _fit_books, _gathered
from toolchain.quantize.solvers.vectors import choose_dimension
from toolchain.settings.quantize import QuantizeSettings
from toolchain.tune.trainable.vectors import TrainableVectors

CHOICES = [
    {"format": "vectors", "dimension": 2},
    {"format": "vectors", "dimension": 4},
    {"format": "vectors", "dimension": 8, "bits": 1},
    {"method": "aqlm"},
]


@settings(max_examples=25)
@given(
    st.sampled_from(CHOICES), st.integers(1, 40), st.integers(1, 70), st.sampled_from([0, 1, 7, 64]),
    st.sampled_from([0, 16]), st.integers(0, 1000),
)  # fmt: skip
def test_steps_never_raise_the_loss_and_the_record_is_true(choice, rows, columns, shared, scale, seed):
    w, h = problem(seed, rows, columns)
    options = QuantizeSettings(**{"bits": 2, **choice}, rows_per_codebook=shared, scale_bits=scale, passes=2)
    result = method(options.method)(w, h, options)
    steps = result.losses
    assert steps["sweep"] <= steps["clustering"] and steps["refinement"] <= steps["sweep"]
    final = steps.get("coded_scales", steps.get("stored_scales"))
    # padded columns hardly count; float32 dequantization: a relative error of 1e-6 of the weights
    assert relative_loss(result, w, h) == pytest.approx(final, rel=2e-3, abs=1e-8)
    tensors, record = result.stored("w")
    assert record.bytes == sum(array.nbytes for array in tensors.values())
    again = StoredMatrix.restored(record, lambda suffix: tensors.get("w" + suffix))
    np.testing.assert_array_equal(again.dequantized(), result.dequantized())


def test_vectors_beat_scalars_at_equal_bits():
    w, h = problem(0, 256, 256)
    scalar, vector = (
        method("athena")(w, h, QuantizeSettings(bits=2, **form)) for form in ({}, {"format": "vectors", "dimension": 4})
    )
    bits = [result.stored("w")[1].effective_bits for result in (scalar, vector)]
    assert bits[1] <= bits[0] + 0.08
    assert relative_loss(vector, w, h) < 0.9 * relative_loss(scalar, w, h)


@pytest.mark.parametrize(
    "shape, bits, dimension",
    [
        ((256, 256), 2, 4),
        ((128, 256), 2, 2),
        ((172, 64), 2, 2),
        ((32, 64), 2, 2),
        ((768, 256), 3, 1),
        ((32, 64), 3, 1),
        ((768, 256), 5, 1),
    ],
)
def test_automatic_dimension(shape, bits, dimension):
    assert choose_dimension(*shape, QuantizeSettings(bits=bits, format="vectors")) == dimension
    assert choose_dimension(*shape, QuantizeSettings(bits=bits, format="vectors", rank=2)) == 1
    assert choose_dimension(*shape, QuantizeSettings(bits=1, format="vectors", dimension=8)) == 8


def test_codebooks_are_the_least_squares_solution():
    """Against the dense normal equations of all entries."""
    rng = np.random.default_rng(0)
    w, h = problem(0, 6, 12)
    state = State(rng.integers(0, 3, (6, 2, 6)), rng.standard_normal((2, 3, 2)), rng.random(6) + 0.5)
    unknowns = state.book.size
    images = np.stack([State(state.codes, e.reshape(2, 3, 2), state.scale).weights().ravel() for e in np.eye(unknowns)])
    metric = np.kron(np.eye(6), h)
    best = np.linalg.lstsq(images @ metric @ images.T, images @ metric @ w.ravel(), rcond=None)[0]
    loss = w.ravel() - images.T @ best
    _fit_books(w, h, state)
    found = w - state.weights()
    assert found.ravel() @ metric @ found.ravel() == pytest.approx(loss @ metric @ loss, rel=1e-6)
    values = rng.standard_normal(w.shape)  # the transpose of the look-up
    assert (values * state.levels()).sum() == pytest.approx((_gathered(values, state) * state.book).sum())


@settings(max_examples=15)
@given(st.sampled_from(CHOICES), st.integers(1, 30), st.integers(2, 50), st.sampled_from([0, 16]), st.integers(0, 1000))
def test_trained_weights_are_stored_exactly(choice, rows, columns, scale_bits, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * 0.1
    x = rng.standard_normal((100, columns))
    options = QuantizeSettings(**{"bits": 2, **choice}, scale_bits=scale_bits, passes=1)
    stored = method(options.method)(w, x.T @ x, options)
    layer = TrainableVectors(nn.Linear(columns, rows), stored)
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
        ({"format": "vectors", "dimension": 3}, "--dimension must be 0 to 2, 4 or 8"),
        ({"format": "vectors", "dimension": 4, "bits": 3}, "8 bits at most"),
        ({"format": "vectors", "dimension": 2, "budget": 2.5}, "8 bits at most"),
        ({"format": "vectors", "dimension": 2, "bits": 2, "method": "gptq"}, "for --method athena"),
        ({"format": "vectors", "dimension": 2, "bits": 2, "rank": 4}, "--rank does not go with"),
        ({"method": "aqlm", "bits": 2, "group_size": 64}, "--group-size does not go with"),
        ({"method": "aqlm", "budget": 2.5}, "--bits"),
    ],
)
def test_impossible_settings_are_refused(settings_, message):
    with pytest.raises(InputError, match=message):
        QuantizeSettings(**settings_)
