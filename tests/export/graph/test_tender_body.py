"""TenderQuantize's function body in stock onnxruntime, bit for bit against the numpy reference; its product as well."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.integers import SDR_MATMUL, IntegerLayout, sdr_matmul, weight_integers
from export.contract.operators.tender import TENDER_QUANTIZE, TenderFormat, shift_accumulate, tender_quantize
from export.contract.packing import pack
from tests.export.contract.test_tender import problem
from tests.export.graph.test_integer_functions import run


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 4), st.integers(1, 70), st.integers(1, 16), st.integers(2, 8),
    st.sampled_from([1, 16, 32]),
)  # fmt: skip
def test_body(seed, tokens, columns, groups, width, group_size):
    x, constants, _, _ = problem(seed, tokens, columns, groups, width, group_size, 2)
    form = TenderFormat(width, group_size)
    inputs = [x[None], *constants]
    want = tender_quantize(x[None], *constants, form)
    found = run_tender(form, inputs)
    for ours, theirs in zip(want, found, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_the_product_of_the_graph_is_the_accumulators():
    """INT4 in 14 groups: SdrMatMul's body, its reference, and one accumulator shifted by one bit between groups."""
    x, constants, _, _ = problem(5, 3, 100, 14, 4, 16, 2)
    form, rng, rows = TenderFormat(4, 16), np.random.default_rng(0), 6
    runs, places = constants[2], constants[0].size
    layout = IntegerLayout(4, places, rows, 16, rows_per_codebook=rows)
    codes = pack(rng.integers(0, 15, (rows, places)), 4)
    book = np.minimum(np.arange(16) - 7, 7).astype(np.int8).reshape(1, 1, -1)
    flags, scale = np.zeros((1, -(-runs.size // 2)), np.uint8), rng.uniform(0.01, 0.1, (rows, 1)).astype(np.float32)
    activations = run_tender(form, [x[None], *constants])
    attributes = layout.attributes()
    found, sums = run(SDR_MATMUL, attributes, [*activations, codes, book, flags, scale], [1, 7], "sums")
    exact = shift_accumulate(activations[0], runs, weight_integers(layout, codes, book))
    np.testing.assert_array_equal(sums.reshape(exact.shape), exact)
    np.testing.assert_array_equal(found, sdr_matmul(*activations, layout, codes, book, flags, scale))


def run_tender(form: TenderFormat, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return run(TENDER_QUANTIZE, form.attributes(), inputs, [3, 2, 1])
