"""Infinity and NaN in JSON, as transformers writes them."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from transformers import PretrainedConfig

from export.files.special_floats import as_json, from_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_there_and_back_and_as_transformers(value):
    written = as_json(value)
    assert json.dumps(written, allow_nan=False) == json.dumps(PretrainedConfig._encode_special_floats(value))
    assert repr(from_json(written)) == repr(value)
    assert repr(as_json(from_json(written))) == repr(written)


def test_what_only_looks_like_one_stays():
    for value in ({"__float__": 1}, {"__float__": "x"}, {"__float__": "NaN", "a": 1}, {"__float__": ["NaN"]}):
        assert from_json(value) == value
    assert math.isnan(from_json({"__float__": "NaN"})) and as_json((math.inf,)) == [{"__float__": "Infinity"}]
