"""What deploy/ has for operators: a unit that systemd takes, and an image whose steps make a server that answers."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.runtime_py.tiny import write_tiny

ROOT = Path(__file__).resolve().parents[1]
UNIT, IMAGE = ROOT / "deploy" / "athena-export.service", ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the image's lines."""
    lines = [line for line in IMAGE.read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def arguments(kind: str) -> list[str]:
    return [text for name, text in instructions() if name == kind]


def test_systemd_takes_the_unit(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze")
    here = shutil.which("true")
    text = UNIT.read_text().replace("/opt/athena/bin/athena-export", str(here))
    (tmp_path / UNIT.name).write_text(text)
    found = subprocess.run([program, "verify", str(tmp_path / UNIT.name)], capture_output=True, text=True)
    told = [line for line in found.stderr.splitlines() if UNIT.name in line]
    assert found.returncode == 0 and not told, found.stderr


def test_the_unit_and_the_image_start_a_command_that_there_is():
    import typer.main

    from toolchain.cli import app

    command = typer.main.get_command(app).commands["serve"]
    (line,) = re.findall(r"^ExecStart=\S+/athena-export serve (.+)$", UNIT.read_text(), re.MULTILINE)
    command.make_context("serve", line.split())
    name, *options = json.loads(arguments("ENTRYPOINT")[0])[1:]
    assert name == "serve"
    command.make_context("serve", [*options, "/models/chat"])


def test_the_stop_takes_longer_than_the_drain():
    text = UNIT.read_text()
    drain, stop = (int(re.search(rf"{name}[= ](\d+)", text)[1]) for name in ("--drain-timeout", "TimeoutStopSec"))
    assert stop > drain + 10


def test_what_the_image_copies_is_what_the_package_has(tmp_path):
    copied = {text.split()[0] for text in arguments("COPY")} | set(" ".join(arguments("COPY")).split())
    packages = re.search(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text())[1]
    assert {name.strip(' "*') for name in packages.split(",")} <= copied
    assert all((ROOT / name).exists() for name in copied if not name.startswith("/"))


@pytest.mark.long
def test_the_steps_of_the_image_make_a_server_without_torch(tmp_path):
    """The image's COPY and pip steps in a plain environment; its entry point answers, and SIGTERM ends it with 0."""
    source, environment = tmp_path / "src", tmp_path / "environment"
    for text in arguments("COPY"):
        *names, target = text.split()
        for name in names:
            source.mkdir(exist_ok=True)
            to = source / Path(target).relative_to("/src")
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, to)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (pip,) = [text for text in arguments("RUN") if text.startswith("pip install")]
    extra = re.fullmatch(r'pip install "/src(\[\w+\])"', pip)[1]
    subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "-q", f"{source}{extra}"], check=True)
    listed = subprocess.check_output([environment / "bin" / "python", "-m", "pip", "list"], text=True)
    assert "torch" not in listed and "transformers" not in listed
    folder = write_tiny(tmp_path / "models" / "chat", {})
    entry = json.loads(arguments("ENTRYPOINT")[0])
    command = [str(environment / "bin" / entry[0]), *entry[1:], str(folder), "--host", "127.0.0.1", "--port", "0"]
    clean = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "ATHENA_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean, cwd=tmp_path) as process:
        try:
            told = []
            for line in process.stderr:
                told.append(line)
                if found := re.search(r'"url": "(\S+)"', line):
                    break
            assert found, "".join(told)
            url = found[1]
            body = json.dumps({"prompt": "Once", "max_tokens": 3}).encode()
            with urllib.request.urlopen(f"{url}/completions", body, timeout=60) as answer:
                assert json.loads(answer.read())["usage"]["completion_tokens"] == 3
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
