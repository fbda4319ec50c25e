"""Folders whose manifests, reports, graphs and targets disagree with what they should hold: one line, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from export.artefacts.chat_templates import read_templates, write_templates
from export.artefacts.generation_config import ignored
from export.artefacts.reader import read_graph
from export.contract.errors import InputError, printable
from targets import TargetError, load_target
from toolchain.cli import app
from toolchain.cli.common import guarded
from toolchain.report.compare import compare

WRONG = (None, 5, "x", [], [{}], {}, True, -1, 10**400, float("nan"))


@pytest.fixture(scope="module")
def folder(demo_folder, tmp_path_factory) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path_factory.mktemp("hostile") / "m"))


def athena(*arguments):
    """Exit code and both outputs of a command; what escapes the error boundary is code 1."""
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    return found.exit_code, found.output


def refused(*arguments):
    code, output = athena(*arguments)
    lines = output.strip().splitlines()
    assert code in (0, 2), output
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("athena-export: "), output
    assert all(printable(line) == line for line in lines)
    return code


def edited(folder, name, edit):
    path = folder / name
    kept = path.read_bytes()
    data = json.loads(kept)
    edit(data)
    path.write_text(json.dumps(data))
    return path, kept


def set_field(path, value):
    def edit(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = value

    return edit


MANIFEST_FIELDS = [
    ("tensors",), ("totals",), ("settings",), ("settings", "method"), ("totals", "effective_bits"), ("totals", "bytes"),
    ("totals", "parameters"), ("tensors", 0), ("tensors", 0, "bytes"), ("tensors", 0, "effective_bits"),
    ("tensors", 0, "name"), ("tensors", 0, "shape"), ("tensors", 0, "losses"), ("tensors", 0, "bits"),
    ("tensors", 0, "scheme"), ("lowering",), ("source",), ("integers",),
]  # fmt: skip


@pytest.mark.parametrize("path", MANIFEST_FIELDS, ids=lambda p: ".".join(map(str, p)))
def test_a_manifest_that_disagrees(folder, path):
    for value in WRONG:
        file, kept = edited(folder, "athena.json", set_field(path, value))
        try:
            refused("inspect", folder)
            refused("run", folder, "--max-tokens", 1) if path == ("lowering",) else None
        finally:
            file.write_bytes(kept)


@pytest.mark.parametrize("value", [5, [1], "x", True, {"target": 3}, {"runtime": 5}])
def test_lower_reads_the_same_manifest(folder, tmp_path, value):
    file, kept = edited(folder, "athena.json", set_field(("lowering",), value))
    try:
        assert refused("lower", folder, "--target", "portable", "-o", tmp_path / "out") == 2
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ["x[red]y", "x[/b]", "a\x1b[31mb\nathena-export: fine", "\u202egnp.exe", ":smile:"])
def test_names_are_shown_as_they_are_and_command_nothing(folder, name):
    file, kept = edited(folder, "athena.json", set_field(("tensors", 0, "name"), name))
    try:
        code, output = athena("inspect", folder)
    finally:
        file.write_bytes(kept)
    assert code == 0, output
    assert printable(name)[:8] in output
    assert "\x1b[31m" not in output


def test_a_name_of_half_a_character_is_refused(folder):
    file, kept = edited(folder, "athena.json", set_field(("tensors", 0, "name"), "\ud800"))
    try:
        code, output = athena("inspect", folder)
    finally:
        file.write_bytes(kept)
    assert code == 2 and "athena.json: not valid JSON (half of a surrogate pair)" in output


REPORT_FIELDS = [
    ("provenance",), ("provenance", "source"), ("provenance", "source", "name"), ("provenance", "settings"), ("size",),
    ("size", "effective_bits"), ("size", "file_bytes"), ("tensors",), ("tensors", 0), ("tensors", 0, "losses"),
    ("quality",), ("speed",), ("cost",), ("cost", 0), ("cost", 0, "latency_s"), ("cost", 0, "tokens"),
    ("cost", 0, "energy_j"), ("cost", 0, "target"), ("cost", 0, "by_kind"), ("cost", 0, "notes"),
]  # fmt: skip


@pytest.mark.parametrize("path", REPORT_FIELDS, ids=lambda p: ".".join(map(str, p)))
def test_a_report_that_disagrees(folder, demo_folder, path):
    for value in (*WRONG, 0):
        file, kept = edited(folder, "report.json", set_field(path, value))
        try:
            with suppress(InputError):
                compare([folder, demo_folder])
            if value == 5:  # the page is drawn anew
                refused("cost", folder, "--target", "rpi5")
        finally:
            file.write_bytes(kept)


def tensor(dims, data_type=onnx.TensorProto.FLOAT, name="hostile", **entries):
    found = onnx.TensorProto(name=name, dims=dims, data_type=data_type, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": "0", **entries}.items():
        found.external_data.add(key=key, value=value)
    return found


@pytest.mark.parametrize(
    "hostile",
    [tensor([0, 2**62, 2**62]), tensor([1] * 65), tensor([1], onnx.TensorProto.STRING), tensor([0, -1]),
     tensor([2**63 - 1, 0]), tensor([1] * 33), tensor([2], onnx.TensorProto.INT4, length="1"), tensor([1], 99),
     tensor([1], onnx.TensorProto.COMPLEX128, offset="-16"), tensor([1], offset="9" * 5000),
     tensor([1], location="w\x1b[31m\nathena-export: fine"), tensor([1], length="1e3"),
     onnx.TensorProto(name="x", dims=[2**40], data_type=1, raw_data=b"1"),
     onnx.TensorProto(name="x", dims=[3], data_type=8, string_data=[b"\xff"])],
)  # fmt: skip
def test_hostile_tensors_are_one_line_in_every_reader(folder, tmp_path, hostile):
    target = tmp_path / "m"
    shutil.copytree(folder, target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    model.graph.initializer.append(hostile)
    onnx.save(model, target / "model.onnx")
    with pytest.raises(InputError) as caught:
        read_graph(target)
    assert printable(str(caught.value)) == str(caught.value)
    assert refused("cost", target) == refused("run", target) == 2


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 5000, "value = 1" + "0" * 5000, 'kind = "cpu"\nsummary = 5\nconstants = 3', "\x00", "kind = nan",
     'kind = "cpu"\n[constants.memory_bandwidth]\nvalue = 1' + "0" * 400
     + '\nunit = "byte/s"\nsource = "x"\ntag = "measured"'],
)  # fmt: skip
def test_hostile_targets_are_one_line(folder, tmp_path, text):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(TargetError):
        load_target(str(path))
    assert refused("cost", folder, "--target", path) == 2
    assert refused("lower", folder, "--target", path, "-o", tmp_path / "out") == 2


@pytest.mark.parametrize("value", ["abc", float("nan"), float("inf"), 10**400, [1], True, {}], ids=lambda v: str(v)[:5])
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
def test_generation_numbers_are_refused_by_chat_and_export_alike(folder, name, value, tmp_path):
    from export.artefacts.generation_config import read_generation_config
    from runtime_py.text.generator import default_sampling

    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, name: value}))
    for read in (read_generation_config, lambda f: default_sampling(f, None, None, None, 0)):
        with pytest.raises(InputError, match=f"generation_config.json: {name} must be"):
            read(tmp_path)


BROKEN = {
    "nothing": b"",
    "half": b'{"eos_token_id": 2',
    "a list": b"[1]",
    "zeros": bytes(100),
    "no text": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "half a pair": b'{"a": "\\ud800"}',
    "a long number": b'{"top_k": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_generation_config_that_is_not_used_is_told(folder, case, tmp_path):
    """transformers generates without it, too, but says nothing: the model then does not end as it should."""
    target = tmp_path / "m"
    shutil.copytree(folder, target)
    (target / "generation_config.json").write_bytes(BROKEN[case])
    code, output = athena("run", target, "--max-tokens", 1)
    assert code == 0 and output.count("generation_config.json: ") == 1 and "the file is ignored]" in output
    (target / "generation_config.json").unlink()
    assert ignored(target) == "" and "ignored" not in athena("run", target, "--max-tokens", 1)[1]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link out", "link to nothing", "link to itself"])
def test_a_generation_config_that_is_no_file_is_told(kind, tmp_path):
    path = tmp_path / "generation_config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link out": "/etc/hostname", "link to nothing": "x", "link to itself": path}[kind])
    assert "generation_config.json: " in ignored(tmp_path)


def test_a_tree_that_is_too_deep_is_one_line(folder, tmp_path, monkeypatch):
    target = Path(shutil.copytree(folder, tmp_path / "m"))
    monkeypatch.chdir(target)
    for _ in range(1100):  # deeper than Python's own recursion
        os.mkdir("d")
        os.chdir("d")
    monkeypatch.undo()
    try:
        assert refused("lower", target, "--target", "rpi5", "-o", tmp_path / "out") == 2
        assert refused("inspect", target) == 0
    finally:
        subprocess.run(["rm", "-rf", str(target / "d")], check=True)


@pytest.mark.parametrize(
    "name", ["a" * 300, "\u4e16" * 90, "../x", "a/b", "/tmp/x", "..", "\0", "a" * 250, "\U0001f600" * 63]
)
def test_names_of_templates_that_are_no_file_names_stay_in_the_config(name, tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": name, "template": "t"}]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    before = read_templates(tmp_path / "m")[0]
    write_templates(tmp_path / "m")
    assert read_templates(tmp_path / "m")[0] == before == {"default": "d", name: "t"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


FAULTS = {
    "memory": (MemoryError(), 1, "more memory than there is"),
    "depth": (RecursionError("maximum recursion depth exceeded"), 2, "nests too deeply"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "the disk is full"),
    "limit of a file": (OSError(errno.EFBIG, "File too large"), 1, "the disk is full"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), 1, "the system refuses: Too many open files"),
    "open files, named": (OSError(errno.EMFILE, "Too many open files", "a\x1b"), 2, "a\\x1b: Too many open files"),
    "processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 1, "the system refuses"),
    "a broken disk": (OSError(errno.EIO, "Input/output error"), 1, "the system refuses: Input/output error"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), 1, "the system refuses"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_limits_of_the_machine_are_one_line(case, capsys):
    error, code, message = FAULTS[case]

    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        guarded(fail)()
    told = capsys.readouterr().err
    assert stopped.value.code == code and message in told and len(told.splitlines()) == 1
