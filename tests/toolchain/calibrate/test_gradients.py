"""Gradients of outputs are the same whether gradients of weights are asked for or only the inputs start them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.graph.families import TINY, is_mixture, tiny_model
from toolchain.calibrate.gradients import measure_gradients
from toolchain.source.heads import open_model


@pytest.mark.parametrize("family", TINY)
def test_gradients_of_outputs_need_no_gradients_of_weights(family, tmp_path):
    tiny_model(family, tmp_path)
    source, spec = open_model(tmp_path)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, 12))
    alone = measure_gradients(source, spec, tokens, quiet=True, per_weight=False)
    beside = measure_gradients(source, spec, tokens, quiet=True, per_weight=True)
    assert not alone.weights and alone.outputs.keys() == beside.weights.keys() == set(spec.quantizable())
    for name, values in alone.outputs.items():
        assert values.any() or (is_mixture(family) and not beside.weights[name].any())  # no token reaches it
        np.testing.assert_array_equal(values, beside.outputs[name])
