"""Nested codes in training: every width is what is stored of it, before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from toolchain.quantize.methods.athena import quantize
from toolchain.settings.quantize import QuantizeSettings
from toolchain.tune.microbatch import take_turns
from toolchain.tune.trainable import trainable_layer
from toolchain.tune.trainable.nested import TrainableNested


def at_each_width(stored: StoredMatrix) -> list[np.ndarray]:
    layout, arrays = stored.layout, [stored[part] for part in stored.layout.parts()]
    found = []
    for width in layout.widths:
        plain = layout.at_width(width)
        found.append(plain.dequantized(*(layout.part_at(width, part, *arrays) for part in plain.parts())))
    return found


def of_layer(layer: TrainableNested) -> list[np.ndarray]:
    found = []
    for step in range(len(layer.layout.widths)):
        take_turns(layer, step)
        found.append(layer.weight_matrix().detach().numpy())
    take_turns(layer, 0)
    return found[::-1]


@pytest.mark.parametrize("bits, lowest, rows, columns, scale_bits", [(4, 2, 13, 40, 0), (3, 1, 5, 21, 16)])
def test_every_width_is_stored_as_it_was_trained(bits, lowest, rows, columns, scale_bits):
    rng = np.random.default_rng(bits)
    x = rng.standard_normal((200, columns))
    options = QuantizeSettings(bits=bits, nested=lowest, scale_bits=scale_bits, passes=1, rows_per_codebook=4)
    stored = quantize(rng.standard_normal((rows, columns)) * 0.1, x.T @ x, options)
    layer = trainable_layer(nn.Linear(columns, rows), stored)
    assert isinstance(layer, TrainableNested)
    for found, expected in zip(of_layer(layer), at_each_width(stored), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    target = torch.from_numpy(rng.standard_normal((8, columns)).astype(np.float32))
    for step in range(6):
        take_turns(layer, step)
        optimizer.zero_grad()
        layer(target).square().sum().backward()
        optimizer.step()
    trained, again = of_layer(layer), layer.to_stored(stored.losses)
    for found, expected in zip(trained, at_each_width(again), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
    assert any((again[part] != stored[part]).any() for part in ("codes", "planes"))
    assert again.stored("w")[1].bytes == stored.stored("w")[1].bytes


def test_held_codes_stay_at_all_widths_until_released():
    rng = np.random.default_rng(0)
    stored = quantize(rng.standard_normal((16, 64)), np.eye(64), QuantizeSettings(bits=4, nested=2, passes=1))
    layer = trainable_layer(nn.Linear(64, 16), stored)
    layer.hold(True)
    before = of_layer(layer)
    with torch.no_grad():
        layer.latent.add_(torch.from_numpy(rng.standard_normal(layer.latent.shape).astype(np.float32)))
    for found, expected in zip(of_layer(layer), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    layer.hold(False)
    changed = of_layer(layer)
    assert all((found != expected).any() for found, expected in zip(changed, before, strict=True))
    for found, expected in zip(changed, at_each_width(layer.to_stored({})), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
