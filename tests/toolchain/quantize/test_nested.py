"""The solver of nested codes: moves against slow references, what is stored, and what each width loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from export.contract.formats.nested import NestedLayout
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.methods.athena import quantize
from toolchain.quantize.solvers.nested import choose_layout
from toolchain.quantize.solvers.nested_joint import Nest
from toolchain.settings.presets import Quantization
from toolchain.settings.quantize import QuantizeSettings


def problem(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and the Hessian of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * (0.3 + rng.random(columns))
    x = rng.standard_normal((4 * columns, columns)) @ mixing + rng.standard_normal((4 * columns, columns))
    return rng.standard_normal((rows, columns)) * (0.5 + rng.random((rows, 1))), 2 * x.T @ x / len(x)


def nest(layout: NestedLayout, seed: int) -> tuple[Nest, np.ndarray, np.ndarray]:
    """A state of random codes and levels, its weights and its Hessian."""
    w, h = problem(layout.N, layout.K, seed)
    rng = np.random.default_rng(seed)
    h = ready_hessian(h, 0.01).h
    codes = rng.integers(0, 1 << layout.bits, w.shape).astype(np.uint8)
    books = rng.integers(-127, 128, layout.codebook_shape).astype(np.float64)
    scale = 0.01 + 0.02 * rng.random((layout.N, 1))
    return Nest(layout, w, torch.from_numpy(h.astype(np.float32)), codes, books, scale), w, h


def level(layout: NestedLayout, made: Nest, width: int) -> np.ndarray:
    """The matrix at a width."""
    chunk = np.arange(layout.N) // layout.rows_per_codebook
    place = layout.entries_of(width).start + (made.codes >> (layout.bits - width)).astype(int)
    return made.scale * made.books[chunk[:, None], place]


def losses(layout: NestedLayout, made: Nest, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """By row and width, float64 [N, widths]."""
    errors = [w - level(layout, made, width) for width in layout.widths]
    return np.stack([((e @ h) * e).sum(axis=1) for e in errors], axis=1)


layouts = st.builds(
    lambda bits, below, rows, columns, shared: NestedLayout(bits, columns, rows, max(bits - below, 1), shared),
    st.integers(2, 5), st.integers(1, 3), st.integers(1, 5), st.integers(1, 140), st.integers(1, 3),
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(layouts, st.integers(0, 99))
def test_losses_and_gradients_are_those_of_the_matrix_at_each_width(layout, seed):
    made, w, h = nest(layout, seed)
    found, expected = made.evaluate(), losses(layout, made, w, h)
    chunk = np.arange(layout.N) // layout.rows_per_codebook
    by_chunk = np.stack([np.bincount(chunk, column) for column in expected.T], axis=1)
    np.testing.assert_allclose(found, by_chunk, rtol=1e-3)  # float32


@settings(max_examples=15, deadline=None)
@given(layouts, st.integers(0, 99))
def test_descent_ends_where_no_single_code_lowers_the_weighted_sum(layout, seed):
    made, w, h = nest(layout, seed)
    share = 1.0 / made.evaluate()
    of_row = share[np.arange(layout.N) // layout.rows_per_codebook]
    before = (losses(layout, made, w, h) * of_row).sum(axis=1)
    for _ in range(200):
        made.evaluate()
        if not made.descend(share):
            break
    least = (losses(layout, made, w, h) * of_row).sum(axis=1)
    assert (least <= before * 1.0001).all()
    rng = np.random.default_rng(seed)
    for column in rng.integers(0, layout.K, 4):
        kept = made.codes[:, column].copy()
        for code in range(1 << layout.bits):
            made.codes[:, column] = code
            other = (losses(layout, made, w, h) * of_row).sum(axis=1)
            assert (other >= least * (1 - 1e-3)).all()  # float32
        made.codes[:, column] = kept


def slow_sweep(layout, made, w, factor, order, share) -> np.ndarray:
    """Column by column in float64: the code of the least weighted squares, errors to all later columns."""
    codes, books = np.zeros(w.shape, np.uint8), made.books
    for r in range(layout.N):
        chunk, s = r // layout.rows_per_codebook, made.scale[r, 0]
        work = np.repeat(w[r][order][None], len(layout.widths), axis=0)
        for p, column in enumerate(order):
            levels = np.array([
                [books[chunk, layout.entries_of(width).start + (c >> (layout.bits - width))] for width in layout.widths]
                for c in range(1 << layout.bits)
            ]) * s  # fmt: skip
            cost = ((work[:, p] - levels) ** 2 * share[chunk]).sum(axis=1)
            codes[r, column] = best = int(cost.argmin())
            for i in range(len(layout.widths)):
                work[i] -= (work[i, p] - levels[best, i]) / factor[p, p] * factor[p] * (np.arange(layout.K) >= p)
    return codes


@settings(max_examples=10, deadline=None)
@given(layouts, st.integers(0, 99))
def test_a_sweep_is_the_slow_one(layout, seed):
    made, w, h = nest(layout, seed)
    ready = ready_hessian(h, 0.0)
    share = 1.0 / made.evaluate()
    expected = slow_sweep(layout, made, w, ready.factor, ready.order, share)
    made.sweep(torch.from_numpy(ready.factor.astype(np.float32)), ready.order, share)
    same = (made.codes == expected).mean(axis=1)
    assert (
        np.median(same) == 1 and same.mean() > 0.9
    )  # float32 breaks near ties the other way, and rows go on from there


@pytest.mark.parametrize("columns", [40, 300])
def test_what_is_stored_loses_what_the_record_says(columns):
    w, h = problem(24, columns, 1)
    chosen = QuantizeSettings(bits=4, nested=2, passes=2)
    found = quantize(w, h, chosen)
    layout = found.layout
    assert isinstance(layout, NestedLayout) and layout == choose_layout(*w.shape, chosen)[0]
    damped = ready_hessian(h, chosen.damping).h
    arrays = [found[part] for part in layout.parts()]
    told = [found.losses[f"{width} bits"] for width in layout.widths]
    for width, loss in zip(layout.widths, told):
        plain = layout.at_width(width)
        matrix = plain.dequantized(*(layout.part_at(width, part, *arrays) for part in plain.parts()))
        assert layer_loss(w - matrix, damped) / layer_loss(w, damped) == pytest.approx(loss, rel=1e-2)
        alone = quantize(w, h, QuantizeSettings(bits=width, passes=2)).losses
        assert loss < alone["clustering"]  # error feedback is at work at every width
    assert told[0] > 2 * told[1] > 4 * told[2]
    again = quantize(w, h, chosen)
    assert all(np.array_equal(again[part], found[part]) for part in layout.parts())


@pytest.mark.parametrize("rows, columns", [(256, 256), (768, 256), (64, 64), (4096, 2048)])
def test_all_that_is_beside_the_codes_takes_a_tenth_of_a_bit(rows, columns):
    layout, scale_bits = choose_layout(rows, columns, QuantizeSettings(bits=4, nested=2))
    books = 8 * np.prod(layout.codebook_shape)
    assert books / (rows * columns) + scale_bits / columns <= 0.1 or layout.rows_per_codebook == rows


def test_zeros_and_equal_weights_are_stored():
    for value in (0.0, 0.25):
        found = quantize(np.full((5, 33), value), np.eye(33), QuantizeSettings(bits=3, nested=1))
        np.testing.assert_allclose(found.dequantized(), value, rtol=0.02)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"nested": 4, "bits": 4}, "--nested must be below --bits 4"),
        ({"nested": 2, "format": "trellis"}, "--format nested"),
        ({"format": "nested"}, "--nested LOWEST"),
        ({"nested": 2, "budget": 3.5}, "no --budget"),
        ({"nested": 2, "group_size": 32}, "--group-size"),
        ({"nested": 2, "rank": 4}, "--rank"),
        ({"nested": 2, "outliers": 0.01}, "--outliers"),
        ({"nested": 2, "method": "gptq"}, "--method athena"),
        ({"nested": 2, "bits": 4, "spread": True}, "--spread"),
    ],
)
def test_what_does_not_go_with_it_is_refused(given, told):
    with pytest.raises(InputError, match=told):
        QuantizeSettings(**given)


def test_presets_leave_out_what_does_not_go_with_it():
    for preset in ("fast", "balanced", "best"):
        found = Quantization.from_given({"preset": preset, "nested": 2, "bits": 4}).settings
        assert found.format == "nested" and not found.spread
