"""Matrices larger than all blocks: read and quantized in pieces of rows, with the result of one piece."""

from __future__ import annotations

import numpy as np
import torch

from tests.export.graph.families import tiny_model
from toolchain.pipeline.non_block import bits_of, outside_tensors
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source import checkpoint
from toolchain.source.heads import open_model


def test_pieces_are_the_matrix_and_quantize_as_it_does(tmp_path, monkeypatch):
    tiny_model("gemma4_text", tmp_path)
    source, spec = open_model(tmp_path)
    settings = QuantizeSettings(bits=4, embedding_bits=8, per_layer_bits=4)
    table = spec.per_layer.embedding
    assert bits_of(table, spec, settings) == 4 and bits_of(spec.embedding, spec, settings) == 8
    expected, records = outside_tensors(source, spec, settings)
    shape, whole = spec.outside()[table], source.tensor(f"{table}.weight")
    monkeypatch.setattr(checkpoint, "_PIECE", 4 * 7 * shape[1])  # seven rows
    pieces = list(source.row_pieces(f"{table}.weight", shape))
    assert [start for start, _ in pieces] == list(range(0, shape[0], 7))
    assert torch.equal(torch.cat([piece for _, piece in pieces]), whole)
    rows = np.array([0, 6, 7, 50, 95])
    assert torch.equal(source.rows(f"{table}.weight", shape, rows), whole[rows])
    found, again = outside_tensors(source, spec, settings)
    assert again == records and found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
