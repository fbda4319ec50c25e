"""The cost of sparse attention: what a query reads is counted, by hand, from the pages, and priced on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.contract.pages import Pages
from export.model_folder import write_model_folder
from hw_model.estimate import estimate, workload
from hw_model.graph_work.workload import CACHE_BYTES, Phase
from targets import target_names
from tests.export.graph.families import FloatCheckpoint, tiny_model
from tests.hw_model.test_cost import total
from toolchain.sparsify.folder import write_sparse_folder

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4, 6, 2, 32  # of the bundled model
ROW = CACHE_BYTES * KV_HEADS * HEAD_DIM


@pytest.fixture(scope="module")
def sparse_folder(demo_folder, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sparse")
    write_sparse_folder(demo_folder, folder, Pages(8))
    return folder


@pytest.mark.parametrize("context, seen", [(100, 100), (128, 128), (129, 128), (1024, 128)])
def test_a_token_reads_its_pages_and_all_means(sparse_folder, context, seen):
    work = workload(sparse_folder, "decode", context)
    means = context // 16 if context > 128 else 0
    assert total(work, "macs", "attention") == LAYERS * 2 * (seen + means // 2) * HEADS * HEAD_DIM
    assert total(work, "cache_read_bytes") == LAYERS * ROW * (2 * seen + means)
    attention = next(op for op in work if op.kind == "attention")
    phase = Phase.of("decode", context)
    assert attention.keys(phase).sum() == attention.pairs == seen + means // 2
    assert attention.held_values(phase) == 2 * context * KV_HEADS * HEAD_DIM  # all keys are kept


def test_a_prompt_multiplies_with_the_pages_of_each_query(sparse_folder):
    work = workload(sparse_folder, "prefill", 300)
    reads = [t + 1 if t < 128 else 128 + (t + 1) // 32 for t in range(300)]
    assert total(work, "macs", "attention") == LAYERS * 2 * sum(reads) * HEADS * HEAD_DIM
    attention = next(op for op in work if op.kind == "attention")
    np.testing.assert_array_equal(attention.keys(Phase.of("prefill", 300)), reads)


@pytest.mark.parametrize("name", target_names())
def test_every_machine_gains_from_it_at_length(demo_folder, sparse_folder, name):
    dense, sparse = (estimate(folder, [name], "decode", 4096)[0] for folder in (demo_folder, sparse_folder))
    assert sparse.latency_s < dense.latency_s and sparse.energy_j < dense.energy_j


def test_windows_stay_as_they_are(tmp_path):
    from export.contract.errors import InputError

    tiny_model("mistral", tmp_path / "source")  # a window of 6
    for name in ("out", "sparse"):
        (tmp_path / name).mkdir()
    write_model_folder(FloatCheckpoint(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(InputError, match="no attention can become sparse .it reads a window"):
        write_sparse_folder(tmp_path / "out", tmp_path / "sparse", Pages(8))
