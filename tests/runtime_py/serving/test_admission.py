"""What a request may cost before it is admitted, after its client has left, and while its client is slow."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from runtime_py.chat.template import PlainTemplate, open_template
from runtime_py.serving.app import Server
from runtime_py.serving.requests.errors import for_clients
from runtime_py.serving.scheduler import Failed, Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generation import GenerationRequest
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings
from tests.runtime_py.serving.helpers import ServerProcess


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


def client_of(generator, template=None, **settings):
    server = Server(generator, template or PlainTemplate(), "m", ServeSettings(**settings))
    return server, TestClient(server.application())


@pytest.fixture(scope="module")
def client(generator):
    server, found = client_of(generator, sessions=2, queue=6)
    with found:
        yield found
    server.close()


def complete(client, key="", **more):
    body = {"prompt": "Once upon a time", "max_tokens": 2, "temperature": 0, **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post("/v1/completions", content=json.dumps(body), headers=headers)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 5000, "1e999", "NaN", "-Infinity"])
@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "n", "logprobs", "frequency_penalty",
     "repetition_penalty", "min_tokens"],
)  # fmt: skip
def test_numbers_that_no_float_holds_are_a_400(client, field, number):
    answer = client.post("/v1/completions", content=f'{{"prompt":"a","{field}":{number}}}')
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "body",
    ['{"prompt":[1' + "0" * 400 + "]}", '{"prompt":"a","logit_bias":{"1":1' + "0" * 400 + "}}",
     '{"prompt":"a","stop_token_ids":[1' + "0" * 400 + "]}", '{"prompt":"a","logit_bias":{"1' + "0" * 400 + '":1}}',
     '{"prompt":' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' * 900 + "1" + "}" * 900,
     '{"prompt":"a","chat_template_kwargs":{"x":1' + "0" * 4400 + "}}", '{"prompt":"\\ud800"}',
     '{"prompt":[' + "[]," * 1_000_000 + "[]]}", '{"prompt":[' + "{}," * 1_000_000 + "{}]}"],
)  # fmt: skip
def test_other_json_that_is_too_much_is_a_400(client, body):
    assert client.post("/v1/completions", content=body).status_code == 400


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(client, generator, monkeypatch):
    called = []
    monkeypatch.setattr("runtime_py.text.tokenizing.encode", lambda *_: called.append(1))
    for prompt in ("!?" * 1_500_000, "x" * (generator.most_bytes + 1)):
        answer = complete(client, prompt=prompt)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    long = [{"role": "user", "content": "!?" * 1_500_000}]
    answer = client.post("/v1/chat/completions", json={"messages": long})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert not called


def test_a_full_queue_costs_no_tokenization(generator, monkeypatch):
    server, client = client_of(generator, sessions=1, queue=1)
    called = []
    monkeypatch.setattr("runtime_py.serving.app.encode_prompt", lambda *_: called.append(1))
    with server.scheduler.places(2):
        assert complete(client).status_code == 429
        assert not called
    monkeypatch.undo()
    assert complete(client).status_code == 200  # the places are free again
    assert complete(client, prompt="x" * (generator.most_bytes + 1)).status_code == 400
    assert complete(client, n=2).status_code == 200  # and so are those of a refused prompt
    server.close()


def test_keys_have_caches_of_their_own(generator):
    server, client = client_of(generator, sessions=1, api_key=("one", "two"))
    prompt = "Once upon a time there was a secret word: abracadabra"

    def reused(key):
        return complete(client, key, prompt=prompt).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert reused("one") == 0
    assert reused("one") > 5
    assert reused("two") == 0
    assert reused("two") > 5
    assert reused("one") == 0
    assert complete(client, "three").status_code == complete(client, "onetwo").status_code == 401
    server.close()


def test_caches_are_not_shared_where_that_is_asked_for(generator):
    server, client = client_of(generator, sessions=1, share_prefixes=False)
    found = [complete(client).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(3)]
    assert found == [0, 0, 0]
    server.close()


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize("place", ["Generation.__init__", "Generation.step", "Generation.cached_tokens"])
@pytest.mark.parametrize("error", [Panic("a"), MemoryError(), SystemExit(1), RecursionError()], ids=repr)
def test_the_scheduler_survives_whatever_ends_a_request(generator, monkeypatch, place, error):
    scheduler = Scheduler(generator.session, generator.tokenizer, ServeSettings(sessions=1, queue=4))
    request = GenerationRequest(tuple(generator.encode("Once upon")), SamplingSettings(), 2)
    events = []

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"runtime_py.serving.scheduler.{place}", fail)
        scheduler.submit([request], lambda i, event: events.append(event), 60.0)
        until(lambda: any(isinstance(event, Failed | Finished) for event in events))
    assert scheduler.alive()
    del events[:]
    scheduler.submit([request], lambda i, event: events.append(event), 60.0)
    until(lambda: any(isinstance(event, Finished) for event in events))
    scheduler.close()


def until(holds, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def changed_folder(folder, target: Path, **change) -> Path:
    shutil.copytree(folder, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    (target / "tokenizer.json").write_text(json.dumps({**tokenizer, **change}), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("change", "prompt"),
    [({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}}, "a" * 60 + "!"),
     ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated",
                         "invert": False}}, "a" * 60 + "!")],
)  # fmt: skip
def test_a_tokenizer_that_panics_is_a_400_and_the_server_goes_on(served_folder, tmp_path, change, prompt):
    server, client = client_of(TextGenerator(changed_folder(served_folder, tmp_path / "m", **change)))
    for _ in range(2):
        answer = complete(client, prompt=prompt)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert str(tmp_path) not in answer.text
    assert client.get("/healthz").status_code == 200
    server.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_decoder_that_panics_ends_its_request_only(served_folder, tmp_path, stream):
    """Strip with both ends, over a token that is nothing but what it strips: the library slices beyond its end."""
    strip = {"type": "Strip", "content": "Ġ", "start": 1, "stop": 1}
    decoder = {"type": "Sequence", "decoders": [strip, {"type": "Fuse"}]}
    generator = TextGenerator(changed_folder(served_folder, tmp_path / "m", decoder=decoder))
    server, client = client_of(generator)
    space = generator.tokenizer.token_to_id("Ġ")
    failed = complete(client, prompt="O", stream=stream, logit_bias={str(space): 100})
    assert failed.status_code == 500 and "PanicException" in failed.json()["error"]["message"]
    assert client.get("/healthz").status_code == 200
    assert complete(client, prompt="O", logit_bias={str(space): -100}).status_code == 200
    server.close()


def test_messages_do_not_tell_where_the_server_keeps_its_files(served_folder, tmp_path):
    folder = tmp_path / "a folder" / "m"
    shutil.copytree(served_folder, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no: /etc/secret/place.txt') }}")
    server, client = client_of(TextGenerator(folder), open_template(folder))
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert message.startswith("chat_template.jinja: ")
    assert "a folder" not in message and "/etc/secret" not in message
    server.close()


@pytest.mark.parametrize(
    ("message", "shown"),
    [("/srv/models/m/x.json: bad", "x.json: bad"), ("m/x.json: bad", "x.json: bad"), ("../y/m/x: bad", "x: bad"),
     ("cat/dog and/or 1/2", "cat/dog and/or 1/2"), ("~/k/x: \x1b[31m", "x: \\x1b[31m")],
)  # fmt: skip
def test_paths_are_cut_to_names(message, shown):
    assert for_clients(message, Path("m")) == shown


def test_the_template_process_knows_no_keys(monkeypatch, tmp_path):
    monkeypatch.setenv("ATHENA_API_KEY", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    (tmp_path / "chat_template.jinja").write_text("x")
    template = open_template(tmp_path)
    environment = Path(f"/proc/{template._process._process.pid}/environ").read_bytes()
    template.close()
    assert b"s3cret" not in environment
    assert b"PATH=" in environment


@pytest.fixture(scope="module")
def server(served_folder):
    with ServerProcess(served_folder, "--model-name", "m", "--sessions", "1", "--read-timeout", "3") as process:
        yield process


def metric(server, name):
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def stream(server, **more):
    body = {"prompt": "Once upon a time", "max_tokens": 400, "stream": True, "ignore_eos": True, **more}
    connection = socket.create_connection((server.host, server.port), timeout=20)
    connection.sendall(server.post("/v1/completions", json.dumps(body).encode()))
    return connection


def test_streams_whose_clients_leave_the_queue_are_never_computed(server):
    before = metric(server, "athena_generated_tokens_total")
    first = stream(server, max_tokens=480, prompt="Once")
    first.recv(100)
    waiting = [stream(server) for _ in range(40)]
    until(lambda: metric(server, "athena_requests_waiting") > 30)
    for connection in waiting:
        connection.close()
    first.close()
    until(lambda: metric(server, "athena_requests_waiting") + metric(server, "athena_requests_running") == 0)
    assert metric(server, "athena_generated_tokens_total") - before < 480 + 40


def test_a_body_in_chunks_of_one_byte_is_refused_at_once(server):
    chunks = b"1\r\nx\r\n" * 1_000_000
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    start = time.monotonic()
    answer = server.raw(head + chunks)
    assert time.monotonic() - start < 5
    assert answer[:12] in (b"HTTP/1.1 400", b"")  # it may be reset before the answer is read
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/healthz", timeout=10) as health:
        assert health.status == 200


def test_small_chunks_of_a_usual_client_are_read(server):
    body = json.dumps({"prompt": "Once", "max_tokens": 1}).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.status_of(head + chunks) == 200


def test_a_client_that_never_reads_loses_its_connection(server):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect((server.host, server.port))
    for _ in range(3000):  # pipelined requests whose answers nobody reads
        try:
            connection.settimeout(0.2)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        except OSError:
            break
    time.sleep(8)
    connection.settimeout(5)
    with pytest.raises(ConnectionError):
        while connection.recv(1 << 20):
            pass
        raise ConnectionResetError
    assert metric(server, "athena_requests_running") == 0
