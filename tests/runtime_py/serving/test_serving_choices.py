"""What a request asks of the choice of tokens, as the server answers it: rules, stop tokens, several choices."""

from __future__ import annotations

import asyncio
import json
import shutil
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from runtime_py.chat.template import ChatTemplate, PlainTemplate
from runtime_py.serving.app import Server
from runtime_py.serving.requests import schema
from runtime_py.serving.scheduler import Busy
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generation import GenerationRequest
from runtime_py.text.generator import TextGenerator
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings

TEMPLATE = "{% for m in messages %}{{ m.name or m.role }}: {{ m.content }}\n{% endfor %}{{ mood or 'calm' }}: "


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


@pytest.fixture(scope="module")
def client(generator):
    server = Server(generator, ChatTemplate(TEMPLATE, {}, "t"), "m", ServeSettings(sessions=2, queue=6))
    with TestClient(server.application()) as found:
        yield found
    server.close()


def complete(client, status=200, **more):
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, **more}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def text(client, **more):
    return complete(client, **more)["choices"][0]["text"]


def events(client, path="/v1/completions", **more):
    """The stream's objects; the last must be the mark of its end."""
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 20, "stream": True, **more}
    if "messages" in more:
        del body["prompt"]
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def tokens_of(generator, **more):
    """Token ids that the same rules give without a server."""
    settings = {"prompt": "Once upon a time", "max_tokens": 20, **more}
    return [token for token, _ in generator.stream(settings=SamplingSettings(), **settings) if token is not None]


def test_every_rule_changes_the_answer_as_the_runtime_does(client, generator):
    plain = tokens_of(generator)
    rules = {
        "repetition_penalty": 1.5,
        "frequency_penalty": 2.0,
        "presence_penalty": 2.0,
        "logit_bias": {str(plain[3]): -100},
    }
    for name, value in rules.items():
        own = {name: ((plain[3], -100.0),) if name == "logit_bias" else value}
        expected = tokens_of(generator, rules=LogitRules(**own))
        assert expected != plain, name
        assert text(client, **{name: value}) == generator_text(generator, expected), name
    assert plain[3] not in tokens_of(generator, rules=LogitRules(logit_bias=((plain[3], -100.0),)))
    assert text(client, temperature=2, min_p=1, seed=3) == text(client)  # only the most likely token is left
    assert text(client, temperature=2, seed=3) != text(client)


def generator_text(generator, ids):
    prompt = generator.encode("Once upon a time")
    whole = generator.tokenizer.decode(prompt + ids)
    return whole[len(generator.tokenizer.decode(prompt)) :]


def test_stop_tokens_end_the_answer_and_are_not_shown(client, generator):
    plain = tokens_of(generator)
    answer = complete(client, stop_token_ids=[plain[6], plain[9]])
    assert answer["usage"]["completion_tokens"] == plain.index(plain[6]) or plain[9] in plain[:6]
    assert answer["choices"][0]["finish_reason"] == "stop"
    later = complete(client, stop_token_ids=[plain[6]], min_tokens=12)
    assert later["usage"]["completion_tokens"] >= 12
    assert plain[6] not in tokens_of(generator, rules=LogitRules(min_tokens=12), stop=frozenset([plain[6]]))[:12]


def test_ignore_eos(client, generator):
    """With the end-of-sequence token made certain, only ignore_eos and min_tokens go on."""
    eos = str(min(generator.stop))
    bias = {"logit_bias": {eos: 100}}
    assert complete(client, **bias)["usage"]["completion_tokens"] == 0
    ignoring = complete(client, ignore_eos=True, **bias)
    assert ignoring["usage"]["completion_tokens"] == 20 and ignoring["choices"][0]["finish_reason"] == "length"
    forced = complete(client, min_tokens=7, **bias)
    assert forced["usage"]["completion_tokens"] == 7 and forced["choices"][0]["finish_reason"] == "stop"
    everything = list(range(generator.session.vocab_size))
    assert complete(client, 400, stop_token_ids=everything, min_tokens=1)["error"]["param"] == "stop_token_ids"
    assert complete(client, stop_token_ids=everything)["usage"]["completion_tokens"] == 0


def test_log_probabilities_stay_the_models_own(client):
    plain = complete(client, logprobs=2, max_tokens=1)["choices"][0]["logprobs"]
    ruled = complete(client, logprobs=2, max_tokens=1, repetition_penalty=3, temperature=0.1, logit_bias={"9": 100})
    assert ruled["choices"][0]["text"] != plain["tokens"][0]
    assert ruled["choices"][0]["logprobs"]["top_logprobs"] == plain["top_logprobs"]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_choices_are_distinct_reproducible_and_counted(client, count):
    asked = {"temperature": 1.3, "seed": 7, "n": count}
    answer = complete(client, **asked)
    assert [choice["index"] for choice in answer["choices"]] == list(range(count))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [complete(client, temperature=1.3, seed=7 + i)["choices"][0]["text"] for i in range(count)]
    assert len(set(texts)) == count
    usage = answer["usage"]
    one = complete(client, temperature=1.3, seed=7)["usage"]
    assert usage["prompt_tokens"] == one["prompt_tokens"] and usage["completion_tokens"] == 20 * count
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    chunks = events(client, **asked, stream_options={"include_usage": True})
    assert chunks[-1]["usage"]["completion_tokens"] == 20 * count and chunks[-1]["choices"] == []
    assert len({chunk["id"] for chunk in chunks}) == 1
    parts = [chunk["choices"][0] for chunk in chunks[:-1]]
    for i in range(count):
        mine = [part for part in parts if part["index"] == i]
        assert "".join(part["text"] for part in mine) == texts[i]
        assert [part["finish_reason"] for part in mine].count("length") == 1 and mine[-1]["finish_reason"] == "length"


def test_choices_of_a_chat_are_interleaved(client):
    asked = {"messages": [{"role": "user", "content": "Once"}], "n": 2, "temperature": 1, "seed": 1, "max_tokens": 15}
    whole = client.post("/v1/chat/completions", json={"model": "m", **asked}).json()
    parts = [chunk["choices"][0] for chunk in events(client, "/v1/chat/completions", **asked)]
    for i in range(2):
        mine = [part for part in parts if part["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        said = "".join(part["delta"].get("content", "") for part in mine)
        assert said == whole["choices"][i]["message"]["content"]
    order = [part["index"] for part in parts if part["delta"].get("content")]
    assert order != sorted(order)


def test_choices_are_admitted_all_or_none(client, generator):
    assert complete(client, 400, n=9)["error"]["param"] == "n"  # two sessions and six places
    server = Server(generator, PlainTemplate(), "m", ServeSettings(sessions=1, queue=2))
    request = GenerationRequest((1,), SamplingSettings(), 5)
    with server.scheduler._wake:  # nothing is computed: the scheduler's thread waits for the lock

        def submit(count: int) -> None:
            server.scheduler.submit([request] * count, lambda i, event: None, 60.0)

        submit(2)
        with pytest.raises(Busy):
            submit(2)
        assert len(server.scheduler._waiting) == 2
        submit(1)
        with pytest.raises(Busy):
            submit(1)
        server.scheduler._waiting.clear()
    server.close()


def test_a_client_that_leaves_ends_all_choices(client, generator):
    server = Server(generator, PlainTemplate(), "m", ServeSettings(sessions=2, queue=6))

    async def leave() -> None:
        body = {"model": "m", "prompt": "Once", "n": 6, "max_tokens": 400, "temperature": 1.0, "ignore_eos": True}
        options = schema.options(body, server._served, False, 16)
        running = server._start(generator.encode("Once"), options, chat=False)
        stream = server._delivery._stream(running, await running.events.get(), options.include_usage)
        await stream.__anext__()
        await stream.aclose()

    asyncio.run(leave())
    deadline = time.monotonic() + 20
    while server.scheduler.load() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.scheduler.load() == (0, 0)
    server.close()


def test_template_variables_reach_the_template(client):
    def tokens(**more):
        message = {"role": "user", "content": "Hi", **more.pop("message", {})}
        body = {"model": "m", "max_tokens": 1, "messages": [message]}
        answer = client.post("/v1/chat/completions", json={**body, **more})
        return answer.status_code, answer.json()

    plain = tokens()[1]["usage"]["prompt_tokens"]
    assert tokens(chat_template_kwargs={"mood": "angry and very sad"})[1]["usage"]["prompt_tokens"] > plain
    assert tokens(message={"name": "Bartholomew"})[1]["usage"]["prompt_tokens"] != plain
    for name in ("messages", "self", "tokenize"):
        status, answer = tokens(chat_template_kwargs={name: 1})
        assert status == 400 and answer["error"]["param"] == f"chat_template_kwargs.{name}"


def test_a_model_without_a_template_takes_no_variables(generator):
    server = Server(generator, PlainTemplate(), "m", ServeSettings())
    with TestClient(server.application()) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        answer = client.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {"enable_thinking": False}})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "chat_template_kwargs.enable_thinking"
    server.close()


def test_refusals_can_be_sent_whatever_the_field_is_called(client):
    for name in ("\\ud800", "a\\u0000b", "\\u00e9", "x" * 5000):
        answer = client.post("/v1/completions", content=f'{{"prompt": "x", "{name}": 1}}'.encode())
        assert answer.status_code == 400 and "unknown field" in answer.json()["error"]["message"]


def test_rules_of_generation_config_hold(served_folder, tmp_path):
    """The model's own repetition penalty and suppressed tokens, as transformers' generate() uses them."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.conftest import DEMO

    plain = tokens_of(TextGenerator(served_folder))
    asked = {"repetition_penalty": 1.4, "suppress_tokens": [plain[0]], "no_repeat_ngram_size": 3, "min_new_tokens": 4}
    folder = tmp_path / "model"
    shutil.copytree(served_folder, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, **asked, "typical_p": 0.9, "num_beams": 4}))
    generator = TextGenerator(folder)
    assert generator.unsupported == ("num_beams",)  # typical_p counts where do_sample is true
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    ids = torch.tensor([generator.encode("Once upon a time")])
    whole = model.generate(ids, do_sample=False, max_new_tokens=20, pad_token_id=0, **asked)[0, ids.shape[1] :].tolist()
    found = tokens_of(generator)
    common = int(np.argmin([a == b for a, b in zip(found, whole)] + [False]))
    assert common >= 10  # 8 bits may turn a near tie later
    assert found != plain
    server = Server(generator, PlainTemplate(), "m", ServeSettings())
    with TestClient(server.application()) as client:
        assert text(client) == generator_text(generator, found)
        lifted = LogitRules(suppress_tokens=(plain[0],), no_repeat_ngram_size=3, min_tokens=4)
        assert text(client, repetition_penalty=1.0) == generator_text(generator, tokens_of(generator, rules=lifted))
    server.close()
