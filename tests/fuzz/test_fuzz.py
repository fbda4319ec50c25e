"""A short run of the fuzzer in every test run, and every finding that was mended, replayed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from export.contract.errors import InputError
from runtime_py.text.generator import TextGenerator
from tests.fuzz.targets import Target, make_folders, mutate

REGRESSIONS = sorted((Path(__file__).parent / "regressions").iterdir())
NAMES = [
    "model",
    "razored",
    "vectors",
    "trellis",
    "trellis-manifest",
    "razored-manifest",
    "tender",
    "tender-manifest",
    "encoder",
    "experts",
    "lower",
    "cost",
    "families",
    "weights",
    "safetensors",
    "shard",
    "manifest",
    "config",
    "generation",
    "tokenizer-config",
    "request",
    "grammar",
    "responses",
    "rerank",
    "bottleneck-config",
    "bottleneck-record",
]


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    return make_folders(tmp_path_factory.mktemp("fuzz") / "folders")


@pytest.mark.parametrize("name", NAMES)
def test_mutations_end_in_one_line_or_a_result(targets, name):
    target, random_ = targets[name], random.Random(name)
    assert target(target.seed)
    refused = sum(not target(mutate(target, target.seed, random_)) for _ in range(150))
    assert refused > 10 or name in ("config", "families", "generation", "tokenizer-config")  # those refuse inside


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_mended_findings_stay_mended(targets, path):
    target = targets[path.name.rsplit("-", 1)[0]]
    target(path.read_bytes())


@pytest.mark.parametrize(
    "name, message",
    [
        ("model.onnx.data", "link out of the folder"),
        ("config.json", "link out of the folder"),
        ("tokenizer.json", "link out of the folder"),
    ],
)
def test_a_file_that_never_ends_is_not_read(targets, tmp_path, name, message):
    folder = tmp_path / "model"
    targets["model"](targets["model"].seed)
    shutil.copytree(targets["model"].folder, folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=message):
        TextGenerator(folder)
