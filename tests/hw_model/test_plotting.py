"""Pictures are drawn as they are anywhere, whatever the current folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAW = """
import os
from hw_model import pictures
from hw_model.plotting import Figure, matplotlib
figure = Figure()
figure.subplots().plot([1, 2])
print(matplotlib.get_backend(), matplotlib.rcParams["lines.linewidth"], len(pictures.svg(figure)) > 1000, os.getcwd())
"""


def settings(text: bytes):
    return lambda path: path.write_bytes(text)


FILES = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "no text": settings(b"backend: \xff\xfe"),
    "another backend": settings(b"backend: module://this\nlines.linewidth: 9"),
    "a program": settings(b"text.usetex: True\nanimation.ffmpeg_path: /bin/false"),
    "nonsense": settings(b"a\nb: c\nsvg.hashsalt: \x00"),
}


@pytest.mark.parametrize("case", FILES)
def test_no_settings_are_taken_from_the_current_folder(case, tmp_path):
    FILES[case](tmp_path / "matplotlibrc")
    done = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["svg", "1.5", "True", str(tmp_path)], done.stderr
    assert done.stderr == ""


def test_a_current_folder_that_was_deleted(tmp_path):
    (tmp_path / "gone").mkdir()
    program = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir('../gone')\nimport hw_model.pictures"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
