"""Products with operands rounded to bfloat16: the very products of the rounded operands, forward and backward."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from export.files.access import MANIFEST
from tests.conftest import DEMO
from toolchain.numerics import products
from toolchain.numerics.products import BFLOAT16, FLOAT32, RoundedLinear, chosen_precision, linear, with_precision
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice, Workers
from toolchain.settings.quantize import QuantizeSettings


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


@pytest.mark.parametrize("shape", [(5, 64), (2, 7, 64), (1, 1, 64)])
def test_products_are_those_of_rounded_operands(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(48, 64, generator=generator, requires_grad=True)
    bias = torch.randn(48, generator=generator)
    y = linear(x, weight, bias, BFLOAT16)
    exact = rounded(x) @ rounded(weight).T
    # sums of 64 terms in float32, rounded once to bfloat16 (8 bits)
    torch.testing.assert_close(y - bias, exact, rtol=2.0**-8, atol=1e-4)
    gradient = torch.randn(y.shape, generator=generator)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, rounded(gradient) @ rounded(weight), rtol=2.0**-8, atol=1e-4)
    expected = rounded(gradient).flatten(0, -2).T @ rounded(x).flatten(0, -2)
    torch.testing.assert_close(weight.grad, expected, rtol=2.0**-8, atol=1e-4)


def test_float32_is_torchs_own():
    x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
    assert torch.equal(linear(x, weight, bias, FLOAT32), nn.functional.linear(x, weight, bias))


def test_models_are_changed_in_place_and_can_be_copied():
    model = nn.Sequential(nn.Linear(8, 8), Conv1D(6, 8), nn.LayerNorm(6))
    x = torch.randn(2, 3, 8)
    before = model(x)
    assert with_precision(model, FLOAT32) is model and type(model[0]) is nn.Linear
    with_precision(model, BFLOAT16)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.zero_()  # the copy has weights of its own
    assert isinstance(twin[0], RoundedLinear) and isinstance(twin[0], nn.Linear) and isinstance(twin[1], Conv1D)
    assert 0 < (twin(x) - before).abs().max() < 0.1


def test_the_precision_is_chosen_by_processor_and_width(monkeypatch):
    for able in (False, True):
        monkeypatch.setattr(products, "processor_multiplies_bfloat16", lambda able=able: able)
        assert chosen_precision("auto", 4096) == (BFLOAT16 if able else FLOAT32)
        assert chosen_precision("auto", 4096, torch.device("cuda")) == FLOAT32
        assert chosen_precision("auto", 64) == FLOAT32
        assert chosen_precision(BFLOAT16, 64) == BFLOAT16 and chosen_precision(FLOAT32, 4096) == FLOAT32


def test_a_run_records_its_precision_and_is_the_same_twice(tmp_path, demo_text):
    settings = QuantizeSettings(bits=3, sequences=4, sequence_length=32, passes=1, tune_steps=2, tune_length=16)
    choice = CalibrationChoice(str(demo_text))
    shards = {}
    for name, precision in (("a", BFLOAT16), ("b", BFLOAT16), ("c", FLOAT32)):
        out = tmp_path / name
        quantize_model(str(DEMO), out, settings, choice, quiet=True, workers=Workers(precision=precision))
        assert json.loads((out / MANIFEST).read_text())["precision"] == precision
        shards[name] = [path.read_bytes() for path in sorted(out.glob("*.safetensors"))]
    assert shards["a"] == shards["b"] != shards["c"]


def test_a_run_goes_on_with_another_precision(tmp_path, demo_text):
    settings = QuantizeSettings(bits=3, sequences=4, sequence_length=32, passes=1)
    choice, out = CalibrationChoice(str(demo_text)), tmp_path / "out"
    first = quantize_model(str(DEMO), out, settings, choice, quiet=True, workers=Workers(precision=BFLOAT16))
    again = quantize_model(str(DEMO), out, settings, choice, quiet=True, workers=Workers(precision=FLOAT32))
    assert first.manifest == again.manifest  # finished: nothing to do


def test_hessians_stay_positive_under_massive_activations():
    """One token a thousand times as large as the others must not raise the damping."""
    from toolchain.numerics.hessian import damped

    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2048, 96, generator=generator)
    rows[0] = 3000 * torch.randn(96, generator=generator).sign()
    from toolchain.calibrate.moments import gram

    hessian = gram(rows, None).double().numpy()
    assert damped(hessian, 1e-6)[1] == 1e-6
    assert np.isfinite(hessian).all()
