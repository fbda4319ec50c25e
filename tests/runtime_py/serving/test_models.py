"""Several models behind one address, as clients see them: real folders, real requests, a limit of memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest

from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.tiny import write_tiny

NAMES = ("one", "two", "three")
MOST = "4MB"  # two of the three cannot be loaded together


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Three small models that answer differently."""
    root = tmp_path_factory.mktemp("several")

    def shaken(seed: int):
        return lambda value: value * np.random.default_rng(seed).uniform(0.5, 2, value.shape).astype(np.float32)

    return {name: write_tiny(root / name, {"lm_head": shaken(i)}) for i, name in enumerate(NAMES)}


def arguments(folders) -> list[str]:
    return [f"org/{name}={folder}" if name == "three" else str(folder) for name, folder in folders.items()]


@pytest.fixture(scope="module")
def server(folders):
    first, *others = arguments(folders)
    with ServerProcess(first, *others, "--memory", MOST, "--sessions", "2", "--log-format", "json") as process:
        yield process


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def ask(client, model: str, **more) -> str:
    options = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, **more}
    return client.completions.create(model=model, **options).choices[0].text


def test_all_are_listed_and_say_whether_they_are_loaded(client):
    ask(client, "one")
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["one", "two", "org/three"]
    assert listed["one"].loaded and not listed["two"].loaded and not listed["org/three"].loaded
    assert all(model.max_model_len == 512 for model in listed.values())
    assert client.models.retrieve("org/three").id == "org/three"


def test_answers_are_those_of_the_model_alone(client, folders):
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.sampling import SamplingSettings

    for name, shown in zip(NAMES, ("one", "two", "org/three")):
        alone = TextGenerator(folders[name]).stream("Once upon a time", SamplingSettings(), 8)
        assert ask(client, shown) == "".join(text for _, text in alone)


def test_100_switches_at_once_lose_no_answer(server, client):
    names = ("one", "two", "org/three")
    alone = {name: ask(client, name) for name in names}
    assert len(set(alone.values())) == 3

    def one(number: int) -> bool:
        name = names[number % 3]
        if number % 2:
            chunks = client.completions.create(
                model=name, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
            )
            return "".join(chunk.choices[0].text for chunk in chunks) == alone[name]
        return ask(client, name) == alone[name]

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(100)))
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    switches = [line for line in lines if line["event"] == "model" and "is loaded" in line["message"]]
    assert len(switches) > 6 and all(0 < line["memory"] < 4_000_000 for line in switches)
    assert server.resident() < 2e9


@pytest.mark.parametrize("name", ["four", "../one", "one/", "ONE", "three", "org%2Fthree", "a\n", "\u202eone"])
def test_an_unknown_model_is_a_404_that_names_those_there_are(client, name):
    with pytest.raises(openai.NotFoundError, match="this server has 'one', 'two', 'org/three'"):
        ask(client, name)


def test_a_request_without_a_model_is_told_to_name_one(server):
    answer = server.raw(server.post("/v1/completions", b'{"prompt": "x"}'))
    assert answer.startswith(b"HTTP/1.1 400") and b"model is needed" in answer


def test_a_folder_that_disappears_is_a_503_until_it_is_back(server, client, folders, tmp_path):
    expected = ask(client, "two")
    ask(client, "one")  # two has left
    away = tmp_path / "away"
    shutil.move(folders["two"], away)
    with pytest.raises(openai.InternalServerError) as error:
        ask(client, "two")
    assert error.value.status_code == 503 and "cannot be loaded now" in error.value.message
    assert str(folders["two"].parent) not in error.value.message
    assert ask(client, "one")
    shutil.move(away, folders["two"])
    assert ask(client, "two") == expected


def refusal(*options: str) -> str:
    """The only line of a `serve` that does not start."""
    command = [sys.executable, "-m", "toolchain", "serve", *options, "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in found.stderr.splitlines() if line.startswith("athena-export: ")]
    assert found.returncode == 2 and len(lines) == 1 and "Traceback" not in found.stderr, found.stderr
    return lines[0]


def test_one_bad_folder_among_several_is_refused_at_start(folders, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folders["two"], bad)
    (bad / "model.onnx.data").write_bytes(b"x")
    assert "model.onnx.data" in refusal(str(folders["one"]), str(bad), "--memory", "1GB")
    assert "not there" in refusal(str(folders["one"]), "not there")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "1MB"), "one takes up to .* --memory allows 1.0 MB"),
        (("--memory", "lots"), "--memory must be a size such as 6GB"),
        (("--memory", "-6GB"), "--memory must be a size such as 6GB"),
        (("--model-name", "x"), "--model-name is for one model"),
        (("--max-context", "0"), "--max-context must be 1 or more"),
        (("--drain-timeout", "nan"), "--drain-timeout must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folders, options, message):
    import re

    assert re.search(message, refusal(str(folders["one"]), str(folders["two"]), *options))


def test_two_models_of_one_name_and_names_that_climb_are_refused(folders):
    folder = str(folders["one"])
    assert "two models are called 'one'" in refusal(folder, folder)
    assert "cannot be a model's name" in refusal(f"a/../b={folder}")


def test_a_smaller_context_takes_less_memory(folders):
    from runtime_py.serving.opening import Opening
    from runtime_py.serving.operating.logs import Log
    from runtime_py.serving.operating.metrics import Metrics
    from runtime_py.serving.settings import ServeSettings
    from runtime_py.serving.turns import Turns

    found = []
    for settings in (ServeSettings(), ServeSettings(sessions=8), ServeSettings(max_context=64)):
        service = Opening(settings, Metrics(), Turns(), Log()).open("one", folders["one"])
        found.append(service.most_bytes())
        assert service.details()["max_model_len"] == (settings.max_context or 512)
        service.close()
    assert found[2] < found[0] < found[1]
