"""Every file of a folder is opened by one reader and written by one writer: hostile kinds, sizes, links and names."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.artefacts.chat_templates import read_templates
from export.artefacts.checkpoint import read_shard_records, write_shard
from export.artefacts.reader import read_graph
from export.artefacts.records import TensorRecord
from export.contract.errors import InputError
from export.files import access as files
from export.files.lock import locked
from export.graph.sentence_modules import read_pooling
from export.model_folder import copy_tokenizer
from runtime_py.load import _stays_mapped
from runtime_py.text.generator import load_tokenizer
from targets import TargetError, load_target
from targets.lowering import open_lowering
from toolchain.calibrate.text import read_text
from toolchain.evaluate.multiple_choice import read_questions
from toolchain.source.checkpoint_files import checkpoint_tensors
from toolchain.source.foreign_folders import refuse_adapter
from toolchain.source.tokenizer import source_tokenizer


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def outside(path: Path) -> None:
    secret = next(parent for parent in path.parents if parent.name in ("model", "m")).parent / "secret"
    secret.write_bytes(b"{}")
    path.symlink_to(secret)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(6 << 30)


READERS = {  # file of a folder, and who reads it first
    "config.json": lambda f: files.read_json(f / "config.json"),
    "athena.json": lambda f: files.read_json(f / "athena.json"),
    "modules.json": read_pooling,
    "chat_template.jinja": read_templates,
    "additional_chat_templates/tool_use.jinja": read_templates,
    "tokenizer_config.json": read_templates,
    "tokenizer.json": load_tokenizer,
    "special_tokens_map.json": source_tokenizer,
    "vocab.txt": source_tokenizer,
    "adapter_config.json": refuse_adapter,
    "model.onnx": read_graph,
    "generation_config.json": lambda f: copy_tokenizer(f, f.parent),
    "merges.txt": lambda f: copy_tokenizer(f, f.parent),
}
KINDS = {"pipe": pipe, "device": device, "link out": outside, "sparse": sparse}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_plain_file_of_the_folder_is_refused_by_name(name, kind, tmp_path):
    place = tmp_path / "model"
    (place / name).parent.mkdir(parents=True)
    KINDS[kind](place / name)
    with pytest.raises(InputError, match=r"not a regular file|link out of the folder|larger than \d+ MB") as raised:
        READERS[name](place)
    assert Path(name).name in str(raised.value) and "\n" not in str(raised.value)
    assert kind != "device" or "link out of the folder, to what is not a regular file" in str(raised.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "link out"])
@pytest.mark.parametrize("name", ["model.safetensors", "shard.safetensors"])
def test_shards(name, kind, tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    if name.startswith("shard"):
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    KINDS[kind](place / name)
    with pytest.raises(InputError, match=f"{name}: is"):
        checkpoint_tensors(place, {})
    with pytest.raises(InputError, match=f"{name}: is"):
        read_shard_records(place / name)


@pytest.mark.parametrize("read", [read_text, read_questions, lambda p: files.read_json_value(p, None)])
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_files_that_the_user_names_may_be_links_but_no_pipes(read, kind, tmp_path):
    KINDS[kind](tmp_path / "text")
    with pytest.raises(InputError, match=r"text: (is not a regular file|larger than)"):
        read(tmp_path / "text")


def test_targets(tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    for read, kind in ((load_target, TargetError), (open_lowering, ValueError)):
        with pytest.raises(kind, match="not a regular file"):
            read(str(tmp_path / "mine.toml"))
    for text in ("a = " + "[" * 100_000, "#" * (2 << 20), "a = " + "9" * 5000):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.toml"):
            open_lowering(str(tmp_path / "bad.toml"))


def test_links_inside_the_folder_and_into_its_hub_cache_work(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    (snapshot / "1_Pooling").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/f00")
    (snapshot / "same.json").symlink_to("config.json")
    for name in ("config.json", "1_Pooling/config.json", "same.json"):
        assert files.read_json(snapshot / name, snapshot) == {"a": 1}
    (tmp_path / "here").symlink_to(snapshot)  # the folder itself may be given by a link
    assert files.read_json(tmp_path / "here" / "config.json") == {"a": 1}
    other = tmp_path / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (other / "f00").write_text("{}")
    (snapshot / "stolen.json").symlink_to(other / "f00")
    with pytest.raises(InputError, match="link out of the folder"):
        files.read_json(snapshot / "stolen.json")


def test_a_linked_folder_inside_the_folder_is_a_link_out_too(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (tmp_path / "elsewhere" / "a.jinja").write_text("{}")
    model = tmp_path / "model"
    model.mkdir()
    (model / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Pooling"}]')
    (model / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    for read in (read_pooling, read_templates):
        with pytest.raises(InputError, match="link out of the folder"):
            read(model)


JSON = {
    "many lists": b"[" + b"[]," * 3_000_000 + b"[]]",
    "many objects": b"[" + b"{}," * 3_000_000 + b"{}]",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "long number": b'{"a": ' + b"9" * 10_000 + b"}",
    "half a pair": b'{"a": "\\ud800"}',
    "half a pair as a key": b'{"\\uDC00": 1}',
    "latin": b'{"a": "\xff"}',
    "two values": b"{} {}",
    "a list": b"[1]",
    "nothing": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_none_or_far_too_much(case, tmp_path):
    (tmp_path / "config.json").write_bytes(JSON[case])
    with pytest.raises(InputError, match=r"config\.json: (not|a JSON object|has more than)"):
        files.read_json(tmp_path / "config.json")


def test_json_without_memory_for_it(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")

    def fail(text):
        raise MemoryError

    monkeypatch.setattr(files.json, "loads", fail)
    with pytest.raises(InputError, match="more memory than there is"):
        files.read_json(tmp_path / "config.json")


def test_surrogate_pairs_are_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert files.read_json(tmp_path / "config.json") == {"a": "\N{GRINNING FACE}"}


def test_packed_texts(tmp_path, monkeypatch):
    path = tmp_path / "text.gz"
    whole = gzip.compress(b"once upon a time " * 1000)
    path.write_bytes(whole)
    assert read_text(path) == "once upon a time " * 1000
    for bad in (whole[:20] + bytes(10) + whole[30:], whole[:-5], whole[:15], b"plain", gzip.compress(b"\xff\xfe")):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"text\.gz"):
            read_text(path)
    monkeypatch.setattr(files, "MAX_TEXT", 1 << 20)
    for size in (1 << 20, (1 << 20) + 1, 200 << 20):
        path.write_bytes(gzip.compress(bytes(size), 1))
        if size == 1 << 20:
            assert len(read_text(path)) == size
        else:
            with pytest.raises(InputError, match="unpacks to more than 1 MB"):
                read_text(path)


def graph(place: Path, tensors: dict[str, tuple]) -> Path:
    """A graph without nodes whose tensors name (file, offset, length, type, dims)."""
    made = helper.make_graph([], "g", [], [])
    for name, (file, offset, length, kind, dims) in tensors.items():
        tensor = made.initializer.add(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    place.mkdir(exist_ok=True)
    onnx.save(helper.make_model(made), place / "model.onnx")
    return place


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("name", ["w.bin", "w.data", "model.onnx.data"])
def test_only_what_the_tensors_need_is_read(name, mapped, tmp_path):
    place = graph(tmp_path / "m", {"a": (name, 4, 8, TensorProto.FLOAT, [2]), "b": (name, 0, 4, TensorProto.INT8, [4])})
    (place / name).write_bytes(np.array([7, 1, 2], np.float32).tobytes())
    os.truncate(place / name, 8 << 40)
    found = read_graph(place, mapped=mapped)
    np.testing.assert_array_equal(found.weights["a"], [1, 2])
    assert found.files == {name: 12}


WRONG = {
    "longer than its file": ("w", 0, 40, TensorProto.FLOAT, [10]),
    "huge dims": ("w", 0, 0, TensorProto.FLOAT, [0, 2**62, 2**62]),
    "many dims": ("w", 0, 4, TensorProto.FLOAT, [1] * 65),
    "text": ("w", 0, 8, TensorProto.STRING, [1]),
    "negative offset": ("w", -4, 4, TensorProto.FLOAT, [1]),
    "far offset": ("w", 2**70, 4, TensorProto.FLOAT, [1]),
    "a pipe": ("pipe", 0, 4, TensorProto.FLOAT, [1]),
    "a link out": ("link", 0, 2, TensorProto.INT8, [2]),
    "no file": ("none", 0, 4, TensorProto.FLOAT, [1]),
    "more than can be mapped": ("big", 0, 2**43, TensorProto.FLOAT, [2**40, 2]),
    "too much to read": ("big", 0, 2**42, TensorProto.FLOAT, [2**40]),
}


@pytest.mark.parametrize("case", WRONG)
def test_external_data_that_does_not_fit(case, tmp_path):
    place = graph(tmp_path / "m", {"a": WRONG[case]})
    (place / "w").write_bytes(bytes(16))
    os.mkfifo(place / "pipe")
    outside(place / "link")
    with open(place / "big", "wb") as file:
        file.truncate(2**42)
    with pytest.raises(InputError):
        read_graph(place, mapped=False)


def test_weights_are_not_read_where_memory_is_short(monkeypatch):
    from runtime_py import load

    monkeypatch.setattr(load, "free_memory", lambda: 1000)
    assert _stays_mapped(None, False, 2000)  # the folder's hint does not fill the memory
    assert not _stays_mapped(None, False, 900)
    with pytest.raises(InputError, match="--no-mmap"):
        _stays_mapped(False, None, 2000)
    assert _stays_mapped(None, None, 900) and _stays_mapped(True, False, 900)


# Writing


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_nothing_is_written_through_prepared_links(victim, tmp_path):
    for name in (".report.json.tmp", "report.json", ".block-00000.safetensors.tmp", "block-00000.safetensors"):
        (tmp_path / name).symlink_to(victim)
    files.write_json(tmp_path / "report.json", {"a": 1})
    record = TensorRecord("a", "float32", (2,), 8)
    write_shard(tmp_path / "block-00000.safetensors", {"a": np.zeros(2, np.float32)}, [record])
    assert victim.read_text() == "precious"
    assert files.read_json(tmp_path / "report.json") == {"a": 1}
    assert read_shard_records(tmp_path / "block-00000.safetensors") == [record]


@pytest.mark.parametrize("kind", [pipe, device, folder])
def test_what_is_no_file_is_not_replaced(kind, tmp_path):
    kind(tmp_path / "page.html")
    with pytest.raises(InputError, match="not a regular file"):
        files.write_bytes(tmp_path / "page.html", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / ("n" * 240)
    files.write_bytes(path, b"first")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "report.json"

    def write(letter: str) -> None:
        for _ in range(20):
            files.write_bytes(path, letter.encode() * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 100_000
    assert list(tmp_path.iterdir()) == [path]


def hard_link(path: Path) -> None:
    (path.parent / "victim").write_text("")
    os.link(path.parent / "victim", path)


def notes(path: Path) -> None:
    path.write_text("my notes")


def soft_link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.symlink_to("victim")


@pytest.mark.parametrize("kind", [soft_link, hard_link, notes, pipe, folder])
def test_a_lock_overwrites_nothing(kind, tmp_path):
    kind(tmp_path / ".out.lock")
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(InputError, match="is no lock of ours"), locked(tmp_path / "out"):
        pass
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_place_without_locks_is_said(number, tmp_path, monkeypatch):
    def flock(handle, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}: its file system has no locks"):
        locked(tmp_path / "out").__enter__()


@pytest.mark.parametrize("left", ["", "4711\n"])
def test_a_lock_that_a_dead_process_left_is_taken_over(left, tmp_path):
    (tmp_path / ".out.lock").write_text(left)
    with locked(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / ".out.lock").exists()
