"""Clients that people use, against a real server: openai, LangChain, LlamaIndex, curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.runtime_py.serving.helpers import ServerProcess

pytestmark = pytest.mark.conformity
CLIENTS = os.environ.get("ATHENA_CLIENTS", "")  # a Python that has the other clients


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    tiny_model("bert", root / "source")
    text, options = random_text(root / "text.txt"), {"bits": 8, "method": "rtn", "sequence_length": 32}
    return _package(_checkpoint(root / "source", str(text), None, root / "quantized", **options), root / "model")


@pytest.fixture(scope="module")
def url(served_folder, encoder_folder):
    with ServerProcess(f"chat={served_folder}", f"encoder={encoder_folder}", "--memory", "1GB") as process:
        yield process.url


@pytest.fixture(scope="module")
def expected(url) -> dict[str, str]:
    """What the openai client of these tests gets."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked = {"model": "chat", "temperature": 0, "max_tokens": 12}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
    return {
        "chat": client.chat.completions.create(messages=messages, **asked).choices[0].message.content,
        "completion": client.completions.create(prompt="Once upon a time", **asked).choices[0].text,
    }


@pytest.fixture(scope="module")
def others(url) -> dict:
    if not CLIENTS:
        pytest.skip("ATHENA_CLIENTS names no Python with langchain-openai and llama-index-llms-openai-like")
    script = Path(__file__).with_name("clients_run.py")
    found = subprocess.run([CLIENTS, str(script), url, "chat", "encoder"], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads(found.stdout.strip().splitlines()[-1])


def test_langchain(others, expected):
    found = others["langchain"]
    assert found["whole"] == found["streamed"] == expected["chat"]
    assert found["responses"] == found["responses_streamed"] == expected["chat"]
    assert found["calls"] and all(call == ["add", ["a", "b"]] for call in found["calls"])
    assert isinstance(found["formed"]["ok"], bool)
    assert len(found["vectors"]) == 2 and found["vectors"][0] == found["vectors"][1] > 1


def test_llama_index(others, expected):
    found = others["llama_index"]
    assert found["whole"] == found["streamed"] == expected["chat"]
    assert found["completed"] == found["completed_streamed"] == expected["completion"]


def test_curl_streams(url, expected):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    body = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stream": True}
    command = [curl, "-sN", f"{url}/completions", "-d", json.dumps(body)]
    lines = [line for line in subprocess.check_output(command, text=True, timeout=120).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected["completion"]


def test_openai_finds_both_models(url):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["chat", "encoder"]
    found = client.embeddings.create(model="encoder", input=["a b c", "d", "a b c"])
    assert found.data[0].embedding == found.data[2].embedding != found.data[1].embedding
    with pytest.raises(openai.BadRequestError, match="generates text"):
        client.embeddings.create(model="chat", input="x")
    with pytest.raises(openai.BadRequestError, match="is an encoder"):
        client.responses.create(model="encoder", input="x")
