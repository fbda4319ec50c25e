"""The server as its clients see it: the real openai client, many of them at once, and hostile ones."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.runtime_py.serving.helpers import ServerProcess


@pytest.fixture(scope="module")
def server(demo_folder):
    with ServerProcess(demo_folder, "--model-name", "stories") as process:
        yield process


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def complete(client, prompt="Once upon a time", **more):
    options = {"model": "stories", "prompt": prompt, "max_tokens": 24, "temperature": 0, **more}
    return client.completions.create(**options)


def talk(client, text="Once upon a time", **more):
    options = {"model": "stories", "max_tokens": 24, "temperature": 0, **more}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **options)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["stories"]
    assert client.models.retrieve("stories").object == "model"
    with pytest.raises(openai.NotFoundError, match="has 'stories'"):
        client.models.retrieve("gpt-4")


def test_a_completion_equals_run(client, demo_folder):
    from runtime_py.text.generator import TextGenerator
    from runtime_py.text.sampling import SamplingSettings

    pairs = list(TextGenerator(demo_folder).stream("Once upon a time", SamplingSettings(), 24))
    answer = complete(client)
    assert answer.choices[0].text == "".join(text for _, text in pairs)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == 24 + answer.usage.prompt_tokens


@pytest.mark.parametrize("ask", [complete, talk])
def test_a_stream_carries_the_same_text(client, ask):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    parts = [c.choices[0] for c in chunks if c.choices]
    if ask is talk:
        assert "".join(p.delta.content or "" for p in parts) == whole.choices[0].message.content
        assert parts[0].delta.role == "assistant"
    else:
        assert "".join(p.text for p in parts) == whole.choices[0].text
    assert parts[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_sampling_is_reproducible_with_a_seed(client):
    texts = [complete(client, temperature=1.2, top_p=0.9, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    unseeded = {complete(client, temperature=1.5).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1


def test_stop_strings_end_the_answer_and_are_not_shown(client):
    whole = complete(client).choices[0].text
    word = whole.split()[4]
    answer = complete(client, stop=[word, "never there"])
    assert answer.choices[0].text == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].text for c in complete(client, stop=word, stream=True))
    assert streamed == answer.choices[0].text


def test_log_probabilities(client):
    found = complete(client, logprobs=3, max_tokens=5).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 5
    assert all(len(top) == 3 and max(top.values()) == p for top, p in zip(found.top_logprobs, found.token_logprobs))
    content = talk(client, logprobs=True, top_logprobs=2, max_tokens=4).choices[0].logprobs.content
    assert len(content) == 4 and all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(bytes(entry.bytes).decode(errors="replace") == entry.token for entry in content)
    assert talk(client).choices[0].logprobs is None


def test_token_ids_as_a_prompt(client, demo_folder):
    from runtime_py.text.generator import load_tokenizer

    ids = load_tokenizer(demo_folder).encode("Once upon a time").ids
    assert complete(client, prompt=ids).choices[0].text == complete(client).choices[0].text


def test_a_prompt_prefix_is_reused_and_changes_nothing(client):
    story = "Once upon a time there was a girl who had a red ball, a blue ball and a very old green ball. "
    alone = complete(client, prompt=story + "She").choices[0].text
    complete(client, prompt=story + "He")
    again = complete(client, prompt=story + "She")
    assert again.choices[0].text == alone
    assert again.usage.prompt_tokens_details.cached_tokens > 20


def test_the_context_is_filled_to_its_end_and_not_beyond(client):
    answer = complete(client, max_tokens=100000)
    assert answer.usage.total_tokens == 512 or answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="context is 512"):
        complete(client, prompt="word " * 2000)
    exact = complete(client, prompt=[5] * 511, max_tokens=9)
    assert exact.usage.completion_tokens == 1 and exact.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 17}, "n must be a whole number from 1 to 16"),
        ({"logit_bias": {"5": 101}}, "logit_bias must hold numbers from -100 to 100"),
        ({"mirostat": 2}, "mirostat is not supported"),
        ({"new_field": [1]}, "unknown field 'new_field'"),
        ({"echo": True}, "echo is not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty must be a number from -2 to 2"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_tokens": 1.5}, "max_tokens must be"),
        ({"max_tokens": "many"}, "max_tokens must be"),
        ({"stop": [1]}, "stop must be"),
        ({"stop": ["x"] * 99}, "at most 8"),
        ({"logprobs": 99}, "logprobs must be"),
        ({"stream": "yes"}, "stream must be"),
        ({"seed": "a"}, "seed must be"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": ["a", "b"]}, "one prompt a request"),
        ({"prompt": [10**9]}, "outside the vocabulary"),
        ({"prompt": [-1]}, "outside the vocabulary"),
        ({"prompt": {"a": 1}}, "prompt must be"),
    ],
)
def test_wrong_fields_are_named(server, options, message):
    body = {"model": "stories", "prompt": "x", **options}
    answer = server.raw(server.post("/v1/completions", json.dumps(body).encode()))
    status, error = int(answer[9:12]), json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert status == 400 and message in error["message"] and error["type"] == "invalid_request_error"


def test_harmless_fields_are_accepted(client):
    extra = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "user": "me", "extra_body": {"priority": 3}}
    assert complete(client, **extra).choices[0].text == complete(client).choices[0].text


def test_bad_conversations(client):
    for messages in (
        [],
        [{"role": "robot", "content": "x"}],
        [{"role": "user"}],
        ["x"],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ):
        with pytest.raises(openai.BadRequestError, match="messages"):
            client.chat.completions.create(model="stories", messages=messages)


def test_a_wrong_model_and_embeddings(client):
    with pytest.raises(openai.NotFoundError):
        complete(client, model="gpt-4")
    with pytest.raises(openai.BadRequestError, match="encoder"):
        client.embeddings.create(model="stories", input="x")


def test_health_and_metrics(server, client):
    complete(client)
    assert server.status_of(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200
    text = server.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode()
    values = dict(line.rsplit(" ", 1) for line in text.split("\n") if line.startswith("athena_"))
    assert float(values['athena_generated_tokens_total{model="stories"}']) >= 24
    assert float(values['athena_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(values['athena_requests_running{model="stories"}']) == 0


def test_hostile_requests_get_a_4xx_and_the_server_lives(server, client):
    post = server.post
    good = json.dumps({"model": "stories", "prompt": "x", "max_tokens": 1}).encode()
    statuses = {
        "malformed JSON": server.status_of(post("/v1/completions", b'{"model": ')),
        "deep JSON": server.status_of(post("/v1/completions", b"[" * 200000)),
        "JSON that is no object": server.status_of(post("/v1/completions", b"[1]")),
        "NaN": server.status_of(post("/v1/completions", b'{"temperature": NaN}')),
        "huge number": server.status_of(post("/v1/completions", b'{"seed": ' + b"9" * 10000 + b"}")),
        "invalid UTF-8": server.status_of(post("/v1/completions", b'{"prompt": "\xff\xfe"}')),
        "half a surrogate": server.status_of(post("/v1/completions", rb'{"model": "stories", "prompt": "\ud800"}')),
        "10 MB prompt": server.status_of(post("/v1/completions", b'{"prompt": "' + b"a" * 10_000_000 + b'"}')),
        "negative length": server.status_of(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
        "wrong length": server.status_of(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9x\r\n\r\n"),
        "chunked beyond the limit": server.status_of(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"40000\r\n" + b"a" * 0x40000 + b"\r\n") * 20
            + b"0\r\n\r\n"
        ),
        "no host": server.status_of(b"GET /healthz HTTP/1.1\r\n\r\n"),
        "not HTTP": server.status_of(b"\x16\x03\x01\x02\x00\x01\x00" + b"\x00" * 100 + b"\r\n\r\n"),
        "path tricks": server.status_of(b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        "encoded path tricks": server.status_of(
            b"GET /v1/models/%2e%2e%2f%00etc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ),
        "unknown path": server.status_of(b"GET /admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        "wrong method": server.status_of(b"DELETE /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    }
    assert {kind: status for kind, status in statuses.items() if not 400 <= status < 500} == {}
    flood = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10**6
    assert server.status_of(flood) in (0, 400)  # closed while the client still sends: it may not hear the answer
    assert server.status_of(post("/v1/completions", b"a" * 60_000_000)) in (0, 413)
    assert server.status_of(post("/v1/completions", good)) == 200
    assert server.alive()


def test_a_key_is_asked_for_and_slow_clients_are_shown_out(demo_folder):
    body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1}).encode()
    with ServerProcess(demo_folder, "--model-name", "m", "--api-key", "s3cret", "--read-timeout", "1.5") as server:

        def post(headers=""):
            return server.status_of(server.post("/v1/completions", body, headers))

        assert [post(), post("Authorization: Bearer wrong\r\n"), post("Authorization: Bearer s3cre\r\n")] == [401] * 3
        assert post("Authorization: Bearer s3cret\r\n") == 200
        assert openai.OpenAI(base_url=server.url, api_key="s3cret").models.list().data[0].id == "m"
        assert server.status_of(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200

        slow_head = socket.create_connection((server.host, server.port), timeout=10)
        slow_body = socket.create_connection((server.host, server.port), timeout=10)
        slow_body.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\nContent-Length: 500\r\n\r\n{"
        )
        start = time.monotonic()
        for _ in range(3):
            slow_head.sendall(b"GET")
            time.sleep(0.2)
        assert slow_head.recv(100) == b""  # closed without an answer
        assert slow_body.recv(12) == b"HTTP/1.1 408"
        assert time.monotonic() - start < 5
        assert post("Authorization: Bearer s3cret\r\n") == 200
        assert any("reaches" in line for line in server.lines) is False


def test_a_full_queue_answers_429_and_a_lost_client_frees_its_place(demo_folder):
    with ServerProcess(demo_folder, "--model-name", "m", "--sessions", "1", "--queue", "1") as server:
        client = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
        long = {"model": "m", "prompt": "x", "max_tokens": 500, "temperature": 0.9, "seed": 1}
        outcomes, lock = [], threading.Lock()

        def ask():
            try:
                client.completions.create(**long)
                result = 200
            except openai.RateLimitError as error:
                result = error.status_code
                assert int(error.response.headers["retry-after"]) >= 1
            with lock:
                outcomes.append(result)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda _: ask(), range(12)))
        assert set(outcomes) == {200, 429} and outcomes.count(200) >= 2

        stream = client.completions.create(**{**long, "stream": True})
        next(iter(stream))
        stream.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            text = server.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode()
            if 'athena_requests_running{model="m"} 0.0' in text:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the cancelled request still runs")
        assert client.completions.create(**{**long, "max_tokens": 2}).usage.completion_tokens == 2


def load(server, clients: int, seconds: float) -> tuple[dict[int, int], int, int]:
    """(answers by status, answers that differ from the same request alone, growth of memory) under load."""
    client = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0, timeout=120)
    prompts = ["Once upon a time", "The dog", "One day, a boy named Tim went to", "She was very happy because"]
    requests = [
        {"model": "stories", "prompt": prompts[i % 4], "max_tokens": 8 + 3 * (i % 7), "temperature": 0.8, "seed": i}
        for i in range(24)
    ]
    alone = [client.completions.create(**r).choices[0].text for r in requests]
    statuses: dict[int, int] = {}
    wrong, lock = 0, threading.Lock()
    before, end = server.resident(), time.monotonic() + seconds

    def work(number: int) -> None:
        nonlocal wrong
        mine = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0, timeout=120)
        i = number
        while time.monotonic() < end:
            i = (i + 1) % len(requests)
            try:
                if i % 3:
                    text = mine.completions.create(**requests[i]).choices[0].text
                else:
                    text = "".join(c.choices[0].text for c in mine.completions.create(stream=True, **requests[i]))
                status = 200
            except openai.APIStatusError as error:
                text, status = alone[i], error.status_code
            with lock:
                statuses[status] = statuses.get(status, 0) + 1
                wrong += text != alone[i]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return statuses, wrong, server.resident() - before


def test_many_clients_for_a_short_time(server):
    statuses, wrong, growth = load(server, 16, 4)
    assert set(statuses) <= {200, 429} and statuses[200] > 20
    assert wrong == 0
    assert growth < 64e6


@pytest.mark.long
def test_64_clients_for_60_seconds(demo_folder):
    with ServerProcess(demo_folder, "--model-name", "stories", "--queue", "40") as server:
        load(server, 64, 5)  # every buffer has grown
        statuses, wrong, growth = load(server, 64, 60)
        print(f"64 clients, 60 s: {statuses}, different {wrong}, memory grew by {growth / 1e6:.1f} MB")
        assert set(statuses) <= {200, 429} and statuses[200] > 200
        assert wrong == 0
        assert growth < 32e6
