"""Texts of an encoder computed together: the bits of each are those it has alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from export.graph.sentence_modules import TEXT_LIMIT
from runtime_py.text.encoder import TextEncoder
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model

LIMIT = 96


@pytest.fixture(scope="module", params=["bert", "modernbert", "xlm-roberta"])
def encoder(request, tmp_path_factory):
    """Learned positions and segments; rotations and windows; positions that begin behind the padding's."""
    root = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, root / "source")
    (root / "source" / TEXT_LIMIT).write_text(f'{{"max_seq_length": {LIMIT}}}')
    text, options = random_text(root / "text.txt"), {"bits": 4, "sequence_length": 32, "method": "rtn"}
    folder = _package(_checkpoint(root / "source", str(text), None, root / "quantized", **options), root / "model")
    found = TextEncoder(folder)
    assert found.interpreted == ""
    return found


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**31), st.integers(0, 1))
def test_the_bits_of_each_text_are_those_it_has_alone(encoder, lengths, seed, segments):
    random_ = np.random.default_rng(seed)
    lengths = [min(length, encoder.limit) for length in lengths]
    texts = [
        (random_.integers(5, 90, length).tolist(), random_.integers(0, 2, length).tolist() if segments else None)
        for length in lengths
    ]
    if "token_type_ids" not in encoder._inputs:
        texts = [(ids, None) for ids, _ in texts]
    groups = encoder.groups(lengths)
    assert sorted(number for group in groups for number in group) == list(range(len(texts)))
    for group in groups:
        together = encoder.states_together([texts[number] for number in group])
        for number, found in zip(group, together):
            np.testing.assert_array_equal(found, encoder.states(*texts[number]))


def test_short_texts_are_grouped_and_single_tokens_are_not(encoder):
    groups = encoder.groups([5] * 8 + [1] + [encoder.limit])
    sizes = sorted(map(len, groups))
    assert sizes[-1] >= min(8, encoder.limit // 16) and sizes[0] == 1
    assert [8] in groups
    assert encoder.groups([]) == []


def test_a_wrong_text_is_refused_and_leaves_the_positions_as_they_were(encoder):
    good, before = list(range(5, 20)), encoder.states(list(range(5, 50))[: encoder.limit])
    with pytest.raises(InputError, match="outside the vocabulary"):
        encoder.states_together([(good, None), ([10**6, 3], None)])
    encoder.states_together([(good, None), (good[:3], None)])
    np.testing.assert_array_equal(before, encoder.states(list(range(5, 50))[: encoder.limit]))
