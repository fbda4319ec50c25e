"""Killed, crowded out, write-protected or raced: the next run ends in the same bytes, or one line says why not."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.contract.errors import InputError
from export.files.lock import locked
from tests.fuzz.targets import tiny_llama

FAST = ["--method", "rtn", "--sequences", "2", "--sequence-length", "16", "--rank", "2"]


def command(*arguments: object, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "toolchain", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **more,
    )  # fmt: skip


def finish(*arguments: object, **more) -> tuple[int, str]:
    process = command(*arguments, **more)
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def contents(folder: Path) -> dict[str, str]:
    """Digests of every file; report pages hold times, so the data they are made from is compared instead."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.html"
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("faults") / "llama")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """What an undisturbed export writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert finish("export", model, "-o", out, *FAST)[0] == 0
    return out


def test_a_lock_is_exclusive_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    with locked(out):
        code = f"from pathlib import Path; from export.files.lock import locked\nwith locked(Path({str(out)!r})): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"another athena-export (process {os.getpid()}) is working on it" in done.stderr
    with locked(out), pytest.raises(InputError, match="another athena-export"), locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_processes_on_one_output(model, tmp_path):
    out = tmp_path / "out"
    processes = [command("export", model, "-o", out, *FAST) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, 2]
    lines = [e.strip().splitlines()[-1] for e, p in zip(errors, processes) if p.returncode == 2]
    assert "is working on it" in lines[0] or "exists and is not empty" in lines[0]
    assert (out / "model.onnx").exists() and not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_ends_in_one_line(model, tmp_path):
    if os.geteuid() == 0:
        blocked = Path("/proc/athena")  # root writes everywhere but there
    else:
        tmp_path.chmod(0o500)
        blocked = tmp_path / "out"
    status, error = finish("export", model, "-o", blocked / "out", *FAST)
    assert status == 2 and "athena-export: " in error and "Traceback" not in error


def small_disk(place: Path, size: str) -> bool:
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize(
    "size", [pytest.param("16k", marks=pytest.mark.long), pytest.param("100k", marks=pytest.mark.long), "220k"]
)
def test_a_full_disk_is_said_and_the_run_continues_once_there_is_room(model, whole, tmp_path, size):
    disk = tmp_path / "disk"
    if not small_disk(disk, size):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        status, error = finish("export", model, "-o", disk / "out", *FAST)
        assert status == 1 and "the disk is full" in error and "Traceback" not in error
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert finish("export", model, "-o", disk / "out", *FAST)[0] == 0
        assert contents(disk / "out") == contents(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.long
@pytest.mark.parametrize("kills", [50])
def test_killed_at_any_moment_the_next_run_gives_the_same_bytes(model, tmp_path, kills):
    """Both halves, quantize and package, with the athena method: kill -9 after a random time, again and again."""
    settings = ["--sequences", "8", "--sequence-length", "64", "--passes", "2"]
    start = time.monotonic()
    assert finish("export", model, "-o", tmp_path / "whole", *settings)[0] == 0
    length = time.monotonic() - start
    expected, random_, killed, completed = contents(tmp_path / "whole"), random.Random(7), 0, 0
    out = tmp_path / "out"
    while killed < kills:
        process = command("export", model, "-o", out, "--force", *settings)
        # Python's and torch's start takes half of it: most kills fall into the work that follows.
        time.sleep(random_.uniform(0.3 * length, 1.02 * length))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if out.exists():  # an earlier run had finished: what is there is whole, in spite of the kill
            assert contents(out) == expected
            completed += 1
            if random_.random() < 0.5:
                shutil.rmtree(out)
    assert finish("export", model, "-o", out, "--force", *settings)[0] == 0
    assert contents(out) == expected
    assert not [p.name for p in tmp_path.iterdir() if p.name not in ("whole", "out")]
    print(f"{killed} kills over a run of {length:.1f} s, {completed} times a finished folder was there, all whole")
