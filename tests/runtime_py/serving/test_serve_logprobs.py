"""Log probabilities as a client gets them from a model whose tokens are often single bytes."""

from __future__ import annotations

import json
import shutil

import openai
import pytest

from runtime_py.text.generator import load_tokenizer
from runtime_py.text.token_bytes import TokenBytes
from tests.conftest import DEMO
from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.text.small_tokenizers import small_tokenizer

SETTINGS = {"model": "bytes", "max_tokens": 40, "temperature": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled model with a tokenizer of byte-fallback kind; what it says is noise, with many byte tokens."""
    from export.model_folder import install_folder
    from toolchain.pipeline.packaging import package_checkpoint
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.settings.quantize import QuantizeSettings

    base = tmp_path_factory.mktemp("bytes")
    source, out = base / "source", base / "model"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(DEMO / name, source / name)
    size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    data = json.loads(small_tokenizer("llama").to_str())
    vocabulary, taken = data["model"]["vocab"], {token["id"] for token in data["added_tokens"]}
    free = [i for i in range(size) if i not in taken | set(vocabulary.values())]
    vocabulary.update({("▁" if i % 2 else "") + "ñ" * (i % 3) + chr(0x4E00 + i): i for i in free})
    (source / "tokenizer.json").write_text(json.dumps(data))
    settings = QuantizeSettings(bits=4, method="rtn", sequences=4, sequence_length=32)
    (base / "text").write_text("Once upon a time 世界 😀\n" * 20)
    text = CalibrationChoice(str(base / "text"), None)
    checkpoint = quantize_model(str(source), base / "quantized", settings, text, quiet=True)
    install_folder(package_checkpoint(checkpoint, out, quiet=True), out, force=False)
    return out


@pytest.fixture(scope="module")
def client(folder):
    with ServerProcess(folder, "--model-name", "bytes") as process:
        yield openai.OpenAI(base_url=process.url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def prompt(folder) -> list[int]:
    tokenizer = load_tokenizer(folder)
    return [tokenizer.token_to_id(token) for token in ("▁", "<0x41>", "a")]


def ask(client, prompt, chat: bool, **more):
    if not chat:
        return client.completions.create(prompt=prompt, logprobs=5, **SETTINGS, **more)
    message = {"role": "user", "content": "a"}
    return client.chat.completions.create(messages=[message], logprobs=True, top_logprobs=5, **SETTINGS, **more)


@pytest.mark.parametrize("seed", range(4))
def test_completions(client, folder, prompt, seed):
    own = TokenBytes(load_tokenizer(folder))
    choice = ask(client, prompt, False, seed=seed).choices[0]
    found = choice.logprobs
    assert [len(top) for top in found.top_logprobs] == [5] * len(found.tokens)
    assert any(name.startswith("bytes:\\x") for top in found.top_logprobs for name in top)
    names = {own.of(token).decode() for token in range(1536) if is_piece(own.of(token))}
    pieces = [(token, offset) for token, offset in zip(found.tokens, found.text_offset) if token in names]
    assert len(pieces) > 5 and all(choice.text[offset:].startswith(token) for token, offset in pieces)

    chunks = [chunk.choices[0] for chunk in ask(client, prompt, False, seed=seed, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == choice.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs]
        assert [item for part in parts for item in part] == getattr(found, name)


def is_piece(data: bytes) -> bool:
    """Whether a token of these bytes is surely no byte token, which may be part of a broken run."""
    return len(data) > 1 and data.decode(errors="ignore").encode() == data and not data.startswith(b"<")


@pytest.mark.parametrize("seed", range(4))
def test_chat(client, seed):
    choice = ask(client, None, True, seed=seed).choices[0]
    content = choice.logprobs.content
    assert [len(entry.top_logprobs) for entry in content] == [5] * len(content)
    assert any(other.token == "\ufffd" and len(other.bytes) == 1 for entry in content for other in entry.top_logprobs)
    valid = choice.message.content.split("\ufffd")[0]  # up to the first broken byte
    assert b"".join(bytes(entry.bytes) for entry in content).startswith(valid.encode())
    chunks = [chunk.choices[0] for chunk in ask(client, None, True, seed=seed, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content
    assert [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content] == content


@pytest.mark.parametrize("chat", [False, True])
def test_a_stop_string_of_byte_tokens(client, prompt, chat):
    def text(choice):
        return choice.message.content if chat else choice.text

    whole = text(ask(client, prompt, chat, seed=1).choices[0])
    stop = whole[9:11]
    answer = ask(client, prompt, chat, seed=1, stop=[stop]).choices[0]
    assert (text(answer), answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = [chunk.choices[0] for chunk in ask(client, prompt, chat, seed=1, stop=[stop], stream=True)]
    assert "".join((c.delta.content or "") if chat else c.text for c in chunks) == text(answer)
