"""An output folder replaces only what this program made, never an input, and never leaves nothing in the place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.contract.errors import InputError
from export.files import replace
from export.files.replace import install_folder, is_ours, output_folder, recover


def ours(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "athena.json").write_text(json.dumps({"format_version": 1, "settings": {}}))
    (path / "model.onnx").write_text(content)
    return path


def tree(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}


FOREIGN = {
    "photos": {"img.jpg": "x"},
    "hidden files": {".bashrc": "x"},
    "a manifest of another program": {"athena.json": "{}"},
    "a manifest that is a list": {"athena.json": "[]"},
    "a broken manifest": {"athena.json": "{"},
    "a manifest with a number only": {"athena.json": '{"format_version": 1}'},
    "a manifest below": {"inner/athena.json": '{"format_version": 1, "settings": {}}'},
    "a folder only": {"inner/deeper/a": "x"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_we_did_not_make_is_not_replaced(case, tmp_path):
    out = tmp_path / "out"
    for name, text in FOREIGN[case].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = tree(tmp_path)
    built = ours(tmp_path / ".out.building", "new")
    for call in (lambda: output_folder(out, True), lambda: install_folder(built, out, True)):
        with pytest.raises(InputError, match=r"no athena\.json of ours"):
            call()
    shutil.rmtree(built)
    assert tree(tmp_path) == before


def test_a_manifest_behind_a_link_does_not_count(tmp_path):
    ours(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "athena.json").symlink_to(tmp_path / "model" / "athena.json")
    assert is_ours(tmp_path / "model") and not is_ours(tmp_path / "photos")


INPUTS = {  # output, input
    "the same": ("p", "p"),
    "the same by a link": ("link", "p"),
    "the input is the link": ("p", "link"),
    "another spelling": ("p/../p", "p"),
    "holds it": ("p", "p/a"),
    "holds it deeper": ("p", "p/a/b/c"),
    "holds it by a link": ("link", "p/a"),
    "holds a text": ("p", "p/text.txt"),
    "holds what a link leads to": ("p", "to-text"),
    "lies in it": ("p/a", "p"),
    "lies in it and is new": ("p/new", "p"),
    "lies in it by a link": ("link/new", "p"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_no_output_is_holds_or_lies_in_an_input(case, tmp_path):
    for name in ("p", "p/a", "p/a/b/c"):
        ours(tmp_path / name)
    (tmp_path / "p" / "text.txt").write_text("x")
    (tmp_path / "link").symlink_to("p")
    (tmp_path / "to-text").symlink_to("p/text.txt")
    output, source = (tmp_path / name for name in INPUTS[case])
    before = tree(tmp_path)
    for inputs in ([source], [tmp_path / "other", source]):
        with pytest.raises(InputError, match=r"which this run reads; choose another folder"):
            output_folder(output, True, inputs)
    assert tree(tmp_path) == before


def test_neighbours_of_inputs_are_fine(tmp_path):
    ours(tmp_path / "p")
    ours(tmp_path / "p2")
    (tmp_path / "text.txt").write_text("x")
    assert output_folder(tmp_path / "p2", True, [tmp_path / "p", tmp_path / "text.txt"]) == tmp_path / "p2"
    assert output_folder(tmp_path / "new", False, [tmp_path / "p"]) == tmp_path / "new"


@pytest.mark.parametrize("output", [".", "..", "/", "../here", "/proc/self/cwd", "inner/.."])
def test_places_that_are_never_replaced(output, tmp_path, monkeypatch):
    place = ours(tmp_path / "here")
    (place / "inner").mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=r"(current|root) folder"):
        output_folder(Path(output), True)


def test_the_home_folder_is_not_replaced(tmp_path, monkeypatch):
    ours(tmp_path / "home" / "me")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    for place in (tmp_path / "home" / "me", tmp_path / "home"):
        with pytest.raises(InputError, match="home folder"):
            output_folder(place, True)


def test_files_and_closed_folders_are_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        output_folder(tmp_path / "file", True)
    with pytest.raises(InputError, match="cannot be written"):
        output_folder(tmp_path / "file" / "out", True)
    monkeypatch.setattr(replace.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written"):
        output_folder(tmp_path / "out", True)


def test_a_mount_point_is_told_before_the_work(tmp_path):
    outer = ours(tmp_path / "outer")
    (outer / "volume").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(outer / "volume")], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        for place in (outer / "volume", outer):
            with pytest.raises(InputError, match="file system is mounted there"):
                output_folder(place, True)
    finally:
        subprocess.run(["umount", str(outer / "volume")], check=True)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", ["nothing", "empty", "ours", "link to ours", "dangling link"])
def test_install(before, exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    out = tmp_path / "out"
    if before == "empty":
        out.mkdir()
    elif before == "ours":
        ours(out)
    elif "link" in before:
        out.symlink_to("target")
        if before == "link to ours":
            ours(tmp_path / "target")
    place = output_folder(out, True)
    install_folder(ours(tmp_path / ".built", "new"), place, True)
    assert (out / "model.onnx").read_text() == "new"
    assert out.is_symlink() == ("link" in before)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"out", place.name})


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_replacement_leaves_one_whole_folder(error, number, tmp_path, monkeypatch):
    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    out, built = ours(tmp_path / "out"), ours(tmp_path / ".out.building", "new")
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(source)
        if error is OSError and len(calls) == number:
            raise OSError(16, "busy")
        real(source, target)
        if len(calls) == number:
            raise error

    monkeypatch.setattr(replace.os, "rename", rename)
    with pytest.raises(error):
        install_folder(built, out, True)
    expected = "old" if error is OSError else "new"
    assert (out / "model.onnx").read_text() == expected and not (tmp_path / ".out.old").exists()


KILLED = """
import os, sys
from pathlib import Path
from export.files import replace
replace._exchange = lambda one, other: False
real = os.rename
def rename(source, target):
    real(source, target)
    os._exit(9)
replace.os.rename = rename
replace.install_folder(Path(".out.building"), Path("out"), True)
"""


def test_what_a_killed_replacement_moved_aside_comes_back(tmp_path):
    ours(tmp_path / "out")
    ours(tmp_path / ".out.building", "new")
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path).returncode == 9
    assert not (tmp_path / "out").exists()
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    assert (tmp_path / ".out.building" / "model.onnx").read_text() == "new"
    recover(tmp_path / "out")  # nothing more to do
    install_folder(tmp_path / ".out.building", tmp_path / "out", True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("planted", ["link", "foreign", "file"])
def test_what_others_put_there_does_not_come_back(planted, tmp_path):
    old = tmp_path / ".out.old"
    if planted == "link":
        ours(tmp_path / "elsewhere")
        old.symlink_to("elsewhere")
    elif planted == "foreign":
        old.mkdir()
        (old / "a").write_text("x")
    else:
        old.write_text("x")
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists() and os.path.lexists(old)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give folders away")
def test_a_folder_of_another_user_does_not_come_back(tmp_path):
    os.chown(ours(tmp_path / ".out.old"), 4444, 4444)
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_in_the_place_for_the_old_one_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    out, built = ours(tmp_path / "out"), ours(tmp_path / ".built", "new")
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "photo").write_text("x")
    with pytest.raises(InputError, match=r"no athena\.json of ours"):
        install_folder(built, out, True)
    assert (tmp_path / ".out.old" / "photo").exists() and (out / "model.onnx").read_text() == "old"


def athena(*arguments: object, cwd: Path) -> tuple[int, str]:
    root = Path(replace.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    return done.returncode, done.stderr


COMMANDS = {
    "export over its source": ("export", "self", "-o", "self", "--force"),
    "export over what holds its source": ("export", "q/model", "-o", "q", "--force"),
    "export over photos": ("export", "q/model", "-o", "photos", "--force"),
    "export over its text": ("export", "self", "-o", "texts", "--force", "--calibration", "texts/a.txt"),
    "export over the text of its evaluation": (
        "export",
        "self",
        "-o",
        "texts",
        "--force",
        "--eval-text",
        "texts/a.txt",
    ),
    "export keeps the checkpoint in its source": ("export", "self", "-o", "new", "--keep-quantized", "self/x"),
    "export keeps the checkpoint in photos": ("export", "self", "-o", "new", "--keep-quantized", "photos", "--force"),
    "export keeps the checkpoint in its output": ("export", "self", "-o", "new", "--keep-quantized", "new/q"),
    "quantize over its source": ("quantize", "self", "-o", "self", "--force"),
    "quantize over hidden files": ("quantize", "self", "-o", "hidden", "--force"),
    "package over what holds its checkpoint": ("package", "q/model", "-o", "q", "--force"),
    "lower over what holds its model": ("lower", "q/model", "-o", "q", "--force", "--target", "rpi4"),
    "lower into its model": ("lower", "q", "-o", "q/new", "--target", "rpi4"),
    "lower over the current folder": ("lower", "../work/q/model", "-o", ".", "--force", "--target", "rpi4"),
    "random over photos": ("export", "--random", "tinyllama-1.1b", "-o", "photos", "--force"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_deletes_anything_foreign(case, tmp_path):
    work = tmp_path / "work"
    ours(work / "q")
    ours(work / "q" / "model")
    ours(work / "self")
    for name in ("photos/img.jpg", "hidden/.profile"):
        (work / name).parent.mkdir()
        (work / name).write_text("x")
    ours(work / "texts")
    (work / "texts" / "a.txt").write_text("x")
    before = tree(work)
    status, error = athena(*COMMANDS[case], cwd=work)
    assert status == 2 and "Traceback" not in error and len(error.strip().splitlines()) == 1, error
    assert tree(work) == before


def test_a_mistyped_source_deletes_no_finished_folder(tmp_path):
    ours(tmp_path / ".rep.old")
    ours(tmp_path / ".rep.building", "new")
    status, error = athena("lower", "missing", "-o", "rep", "--force", "--target", "rpi4", cwd=tmp_path)
    assert status == 2 and "missing" in error
    assert (tmp_path / "rep" / "model.onnx").read_text() == "old"
    assert (tmp_path / ".rep.building" / "model.onnx").read_text() == "new"
