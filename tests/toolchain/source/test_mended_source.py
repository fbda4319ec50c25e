"""What a resumed run carries over is what the source has now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.artefacts.checkpoint import OUTSIDE_SHARD, block_shard
from export.contract.errors import InputError
from tests.fuzz.targets import tiny_llama
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings

FAST = QuantizeSettings(bits=3, method="rtn", sequences=2, sequence_length=16)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mended")
    tiny_llama(root / "source")
    (root / "text.txt").write_text("Once upon a time there was a tokenizer. " * 50)
    quantized(root)
    return root


@pytest.fixture
def root(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "copy")
    return tmp_path / "copy"


def quantized(root: Path, restart: bool = False) -> Path:
    text = CalibrationChoice(str(root / "text.txt"))
    quantize_model(str(root / "source"), root / "out", FAST, text, restart, quiet=True)
    return root / "out"


def config(root: Path, **changes: object) -> None:
    path = root / "source" / "tokenizer_config.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}))


CHANGES = {
    "generation_config.json": '{"temperature": 0.5}',
    "chat_template.jinja": "{{ messages[0].content }}",
    "additional_chat_templates/rag.jinja": "{{ documents }}",
    "special_tokens_map.json": '{"pad_token": "<s>"}',
    "modules.json": "[]",
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_small_files_come_change_and_go(name, finished, root):
    out, place = root / "out", root / "source" / name
    if not finished:  # as a run that was stopped
        (out / OUTSIDE_SHARD).unlink()
        manifest = json.loads((out / "athena.json").read_text())
        (out / "athena.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "totals"}))
    shards = {p.name: p.stat().st_ino for p in out.glob("block-*")}
    place.parent.mkdir(exist_ok=True)
    for text in (CHANGES[name], CHANGES[name] + "\n"):
        place.write_text(text)
        assert (quantized(root) / name).read_text() == text
    place.unlink()
    assert not (quantized(root) / name).exists()
    assert shards == {p.name: p.stat().st_ino for p in out.glob("block-*")} and block_shard(0) in shards
    assert not list(root.glob(".*")) and not list(out.glob(".*"))


def test_a_mended_tokenizer_configuration_arrives(root):
    config(root, chat_template="{{ messages }}")
    assert json.loads((quantized(root) / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_files_of_others_in_a_checkpoint_stay(root):
    (root / "out" / "notes.txt").write_text("mine")
    (root / "out" / ".block-00000.safetensors.0123.tmp").write_text("half")
    assert (quantized(root) / "notes.txt").read_text() == "mine"
    assert not list((root / "out").glob(".*"))


def test_a_source_that_became_hostile_is_refused_again(root):
    (root / "source" / "generation_config.json").unlink(missing_ok=True)
    (root / "source" / "generation_config.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="link out of the folder"):
        quantized(root)
    assert not list(root.glob(".*"))


@pytest.mark.parametrize("name", [".profile", ".git/config", "a.txt"])
def test_a_folder_with_files_is_no_place_for_a_checkpoint(name, root):
    shutil.rmtree(root / "out")
    (root / "out" / name).parent.mkdir(parents=True)
    (root / "out" / name).write_text("x")
    with pytest.raises(InputError, match="not a quantized checkpoint"):
        quantized(root)
    assert (root / "out" / name).read_text() == "x"


def test_force_deletes_no_folder_with_a_manifest_of_another_program(root):
    shutil.rmtree(root / "out")
    (root / "out").mkdir()
    (root / "out" / "athena.json").write_text('{"goddess": true}')
    with pytest.raises(InputError, match=r"no athena\.json of ours"):
        quantized(root, restart=True)
    assert (root / "out" / "athena.json").exists()
