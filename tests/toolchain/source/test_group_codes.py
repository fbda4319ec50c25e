"""Codes with group scales stand for the matrix that their docstring says, in float32 and in that order."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.source.group_codes import GroupCodes


def _random(kind: str, rows: int, columns: int, group: int, bits: int) -> GroupCodes:
    rng = np.random.default_rng(columns)
    shape = (rows, -(-columns // group))
    codes = rng.integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    scale, minimum = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    zero = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    given = {"minimum": {"minimum": minimum}, "zeros": {"zero": zero}, "zero": {"zero": 1}, "scale": {}}[kind]
    return GroupCodes(codes, bits, group, scale, **given)


@pytest.mark.parametrize("kind", ["minimum", "zeros", "zero", "scale"])
@pytest.mark.parametrize(("columns", "group", "bits"), [(64, 32, 4), (70, 32, 8), (5, 8, 2)])
def test_weight(kind: str, columns: int, group: int, bits: int) -> None:
    stored = _random(kind, 3, columns, group, bits)
    weight = stored.weight()
    assert weight.dtype == np.float32 and weight.shape == (3, columns)
    for row in range(3):
        for column in range(columns):
            scale, code = stored.scale[row, column // group], stored.codes[row, column]
            if kind == "zeros":
                expected = scale * np.float32(int(code) - int(stored.zero[row, column // group]))
            elif kind == "zero":
                expected = scale * np.float32(int(code) - 1)
            else:
                expected = scale * np.float32(code)
                if kind == "minimum":
                    expected = np.float32(expected) + stored.minimum[row, column // group]
            assert weight[row, column] == expected


@pytest.mark.parametrize("kind", ["minimum", "zeros", "zero", "scale"])
def test_rows(kind: str) -> None:
    stored, order = _random(kind, 4, 64, 32, 4), np.array([2, 0, 3, 1])
    assert np.array_equal(stored.rows(order).weight(), stored.weight()[order])
