"""Tables of rotations: what a graph gives wrongly is refused every time, and steps keep what they had."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from export.contract.errors import InputError
from runtime_py.engine.rotations import Rotations


class Folder:
    """Gives tables of one angle, too short ones beyond `right` positions."""

    def __init__(self, right):
        self.right = right

    def given(self, names, inputs):
        positions = inputs["position_ids"].size
        shape = (1, positions if positions <= self.right else 3, 0)
        return np.zeros(shape), np.ones(shape)


class Table(dict):
    set = dict.__setitem__


def rotations(right):
    return Rotations(SimpleNamespace(steps=[], rotations=[("cos", "sin")], folder=Folder(right)), checked=True)


def test_tables_grow_by_doubling():
    found, table = rotations(10**6), Table()
    for total, positions in ((1, 1024), (1024, 1024), (1025, 2048), (5000, 5120)):
        found.reach(total, table)
        assert found.positions == positions == len(found.tables[0])
        assert table["cos.0"] == found.tables[0].ctypes.data


def test_a_wrong_table_is_refused_again():
    found, table = rotations(1024), Table()
    found.reach(1024, table)
    before = dict(table)
    for _ in range(2):
        with pytest.raises(InputError, match="rotations of shape"):
            found.reach(1025, table)
    assert table == before and found.positions == 1024
